"""Each objective against -log softmax written out, gradients included; which passes it asks for."""

from __future__ import annotations

import math

import pytest
import torch
from reference import slow_cross_entropy

from nsr.errors import InputError
from nsr.objectives import AdversarialTraining, Natural

LABELS = torch.tensor([2, 0, 1, 1, 0])


def logits_of_both():
    generator = torch.Generator().manual_seed(0)
    return {
        side: torch.randn(5, 3, generator=generator, dtype=torch.float64).requires_grad_()
        for side in ("clean", "adversarial")
    }


EXPECTED = {  # sides -> terms by hand
    "natural": (Natural(), lambda x: {"clean": slow_cross_entropy(x["clean"], LABELS)}),
    "adversarial": (AdversarialTraining(), lambda x: {"adversarial": slow_cross_entropy(x["adversarial"], LABELS)}),
    "half": (
        AdversarialTraining(clean_share=0.5),
        lambda x: {
            "adversarial": 0.5 * slow_cross_entropy(x["adversarial"], LABELS),
            "clean": 0.5 * slow_cross_entropy(x["clean"], LABELS),
        },
    ),
    "a_tenth": (
        AdversarialTraining(clean_share=0.1),
        lambda x: {
            "adversarial": 0.9 * slow_cross_entropy(x["adversarial"], LABELS),
            "clean": 0.1 * slow_cross_entropy(x["clean"], LABELS),
        },
    ),
}


@pytest.mark.parametrize("case", EXPECTED)
def test_terms_are_the_equation_gradients_included(case):
    objective, by_hand = EXPECTED[case]
    logits = logits_of_both()
    given = {side: logits[side] for side in objective.sides}  # no other pass is made
    expected = by_hand(logits)
    got = objective(given, LABELS)
    assert set(objective.sides) == set(expected)
    assert set(got) == {f"{side}_cross_entropy" for side in expected}
    for side, value in expected.items():
        assert got[f"{side}_cross_entropy"].shape == ()
        torch.testing.assert_close(got[f"{side}_cross_entropy"], value, rtol=1e-12, atol=0)
    used = [logits[side] for side in objective.sides]
    gradients = [torch.autograd.grad(sum(terms.values()), used) for terms in (got, expected)]
    for gradient, wanted in zip(*gradients, strict=True):
        assert wanted.ne(0).all()
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("case", EXPECTED)
def test_terms_are_named_as_announced(case):
    objective, _ = EXPECTED[case]
    assert list(objective(logits_of_both(), LABELS)) == list(objective.terms)
    assert set(objective.sides) <= {"clean", "adversarial"}
    assert len(set(objective.sides)) == len(objective.sides)


def test_which_passes_are_asked_for():
    assert Natural().sides == ("clean",)
    assert AdversarialTraining().sides == ("adversarial",)
    assert set(AdversarialTraining(clean_share=0.5).sides) == {"adversarial", "clean"}


def test_the_clean_logits_of_madrys_training_do_not_matter():
    logits = logits_of_both()
    one = AdversarialTraining()(logits, LABELS)
    other = AdversarialTraining()({**logits, "clean": torch.full((5, 3), math.nan)}, LABELS)
    assert one["adversarial_cross_entropy"].item() == other["adversarial_cross_entropy"].item()


def test_confident_logits_do_not_overflow():
    logits = {"clean": torch.tensor([[1000.0, 0.0, 0.0]]), "adversarial": torch.tensor([[0.0, 1000.0, 0.0]])}
    terms = AdversarialTraining(clean_share=0.5)(logits, torch.tensor([0]))
    assert terms["clean_cross_entropy"].item() == 0
    assert terms["adversarial_cross_entropy"].item() == 500


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, True, "0.5", None])
def test_a_wrong_share_is_refused(share):
    with pytest.raises(
        InputError, match=r"objective.clean_share is .*; it must be a number at least 0 and at most 1"
    ) as caught:
        AdversarialTraining(clean_share=share)
    assert "\n" not in str(caught.value)


def test_a_share_of_1_is_refused_or_else_natural_training():
    """No adversarial pass is asked for that no term would use, and no term is left that would be 0."""
    try:
        objective = AdversarialTraining(clean_share=1.0)
    except InputError:
        return
    logits = logits_of_both()
    assert objective.sides == Natural().sides
    assert objective.terms == Natural().terms
    (value,) = objective({"clean": logits["clean"]}, LABELS).values()
    torch.testing.assert_close(value, slow_cross_entropy(logits["clean"], LABELS), rtol=1e-12, atol=0)
