"""Each objective against its equation in explicit loops, gradients included; which passes it asks for."""

from __future__ import annotations

import math

import pytest
import torch
from reference import (
    slow_boosted_cross_entropy,
    slow_cross_entropy,
    slow_kl_divergence,
    slow_logit_pairing,
    slow_weighted_kl_divergence,
)
from torch.nn import functional as F

from nsr.errors import InputError
from nsr.objectives import AdversarialTraining, Free, LogitPairing, Mart, Natural, Trades

LABELS = torch.tensor([2, 0, 1, 1, 0])
SIDES = ("clean", "adversarial")


def logits_of_both():
    generator = torch.Generator().manual_seed(0)
    return {side: torch.randn(5, 3, generator=generator, dtype=torch.float64).requires_grad_() for side in SIDES}


def network():
    """The parameters of a net of two layers, and the two sides' inputs."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    parameters = [draw(4, 6), draw(6), draw(6, 3), draw(3)]
    clean = draw(5, 4)
    inputs = {"clean": clean, "adversarial": clean + 0.3 * draw(5, 4).sign()}
    return [parameter.requires_grad_() for parameter in parameters], inputs


def logits_of_network(parameters, inputs):
    first, first_bias, second, second_bias = parameters
    return {side: (images @ first + first_bias).relu() @ second + second_bias for side, images in inputs.items()}


def cross_entropies(x, *, clean_share=0.0, smoothing=0.0):
    shares = {"adversarial": 1 - clean_share, "clean": clean_share}
    return {
        f"{side}_cross_entropy": share * slow_cross_entropy(x[side], LABELS, smoothing)
        for side, share in shares.items()
        if share
    }


def natural_by_hand(x, *, smoothing=0.0):
    return {"clean_cross_entropy": slow_cross_entropy(x["clean"], LABELS, smoothing)}


def pairing_by_hand(x, *, weight, **settings):
    pairing = slow_logit_pairing(x["clean"], x["adversarial"])
    return {**cross_entropies(x, **settings), "logit_pairing": weight * pairing}


def trades_by_hand(x, *, beta, smoothing=0.0):
    divergence = sum(slow_kl_divergence(x["clean"], x["adversarial"])) / len(LABELS)
    return {**natural_by_hand(x, smoothing=smoothing), "kl_divergence": beta * divergence}


def mart_by_hand(x, *, weight):
    return {
        "boosted_cross_entropy": slow_boosted_cross_entropy(x["adversarial"], LABELS),
        "weighted_kl_divergence": weight * slow_weighted_kl_divergence(x["clean"], x["adversarial"], LABELS),
    }


EXPECTED = {  # an objective, its terms by hand
    "natural": (Natural(), natural_by_hand),
    "natural_smooth": (Natural(label_smoothing=0.1), lambda x: natural_by_hand(x, smoothing=0.1)),
    "adversarial": (AdversarialTraining(), cross_entropies),
    "adversarial_smooth": (AdversarialTraining(label_smoothing=0.1), lambda x: cross_entropies(x, smoothing=0.1)),
    "half": (AdversarialTraining(clean_share=0.5), lambda x: cross_entropies(x, clean_share=0.5)),
    "half_smooth": (
        AdversarialTraining(clean_share=0.5, label_smoothing=0.1),
        lambda x: cross_entropies(x, clean_share=0.5, smoothing=0.1),
    ),
    "a_tenth": (AdversarialTraining(clean_share=0.1), lambda x: cross_entropies(x, clean_share=0.1)),
    "free": (Free(replays=2), cross_entropies),
    "free_smooth": (Free(label_smoothing=0.1), lambda x: cross_entropies(x, smoothing=0.1)),
    "alp": (LogitPairing(), lambda x: pairing_by_hand(x, weight=0.5, clean_share=0.5)),
    "alp_smooth": (
        LogitPairing(weight=1.3, clean_share=0.2, label_smoothing=0.1),
        lambda x: pairing_by_hand(x, weight=1.3, clean_share=0.2, smoothing=0.1),
    ),
    "alp_adversarial": (LogitPairing(weight=0.7, clean_share=0.0), lambda x: pairing_by_hand(x, weight=0.7)),
    "alp_clean": (
        LogitPairing(weight=0.7, clean_share=1.0),
        lambda x: pairing_by_hand(x, weight=0.7, clean_share=1.0),
    ),
    "trades": (Trades(), lambda x: trades_by_hand(x, beta=6.0)),
    "trades_smooth": (
        Trades(beta=1.7, label_smoothing=0.1),
        lambda x: trades_by_hand(x, beta=1.7, smoothing=0.1),
    ),
    "mart": (Mart(), lambda x: mart_by_hand(x, weight=5.0)),
    "mart_light": (Mart(weight=0.6), lambda x: mart_by_hand(x, weight=0.6)),
}


def assert_terms_and_gradients(got, expected, leaves):
    assert set(got) == set(expected)
    for term, value in expected.items():
        assert got[term].shape == ()
        torch.testing.assert_close(got[term], value, rtol=1e-11, atol=0)
    for term in expected:
        gradients = [
            torch.autograd.grad(terms[term], leaves, retain_graph=True, allow_unused=True) for terms in (got, expected)
        ]
        for gradient, wanted in zip(*gradients, strict=True):
            if wanted is None:  # a side that the term does not know
                assert gradient is None
                continue
            torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("case", EXPECTED)
def test_terms_are_the_equation_gradients_of_the_logits_included(case):
    objective, by_hand = EXPECTED[case]
    logits = logits_of_both()
    given = {side: logits[side] for side in objective.sides}  # no other pass is made
    leaves = list(given.values())
    assert_terms_and_gradients(objective(given, LABELS), by_hand(logits), leaves)
    whole = torch.autograd.grad(sum(objective(given, LABELS).values()), leaves)
    assert all(gradient.ne(0).all() for gradient in whole)  # the gradient flows through every side asked for


@pytest.mark.parametrize("case", EXPECTED)
def test_terms_are_the_equation_gradients_of_a_networks_parameters_included(case):
    objective, by_hand = EXPECTED[case]
    parameters, inputs = network()
    logits = logits_of_network(parameters, inputs)
    given = {side: logits[side] for side in objective.sides}
    got, expected = objective(given, LABELS), by_hand(logits)
    assert all(
        gradient.ne(0).any() for gradient in torch.autograd.grad(sum(expected.values()), parameters, retain_graph=True)
    )
    assert_terms_and_gradients(got, expected, parameters)


@pytest.mark.parametrize("case", EXPECTED)
def test_terms_are_named_as_announced(case):
    objective, _ = EXPECTED[case]
    assert list(objective(logits_of_both(), LABELS)) == list(objective.terms)
    assert set(objective.sides) <= {"clean", "adversarial"}
    assert len(set(objective.sides)) == len(objective.sides)


def published_mart(clean, adversarial, labels, weight):
    """The released code's form, its constants where it has them."""
    adversarial_p, clean_p = F.softmax(adversarial, dim=1), F.softmax(clean, dim=1)
    two_largest = adversarial_p.argsort(1)[:, -2:]
    rival = torch.where(two_largest[:, 1] == labels, two_largest[:, 0], two_largest[:, 1])
    boosted = F.cross_entropy(adversarial, labels) + F.nll_loss(torch.log(1.0001 - adversarial_p + 1e-12), rival)
    divergence = F.kl_div(torch.log(adversarial_p + 1e-12), clean_p, reduction="none").sum(1)
    of_label = clean_p.gather(1, labels[:, None])[:, 0]
    return boosted + weight * (divergence * (1.0000001 - of_label)).mean()


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_mart_is_its_released_code_up_to_the_constants_there(scale):
    generator = torch.Generator().manual_seed(2)
    clean = scale * torch.randn(40, 10, generator=generator, dtype=torch.float64)
    adversarial = clean + scale * torch.randn(40, 10, generator=generator, dtype=torch.float64)
    labels = torch.arange(40) % 10
    assert 0 < int((adversarial.argmax(1) == labels).sum()) < 40  # the rival is the largest, or the second
    for side in (clean, adversarial):
        side.requires_grad_()
    mine = sum(Mart(weight=5.0)({"clean": clean, "adversarial": adversarial}, labels).values())
    theirs = published_mart(clean, adversarial, labels, 5.0)
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=0)
    gradients = [torch.autograd.grad(value, (clean, adversarial)) for value in (mine, theirs)]
    for gradient, wanted in zip(*gradients, strict=True) if scale <= 1 else ():  # their constants cap steep logarithms
        assert float((gradient - wanted).norm() / wanted.norm()) < 1e-3


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_trades_without_divergence_is_natural_training_bit_by_bit(smoothing):
    trades, natural = Trades(beta=0, label_smoothing=smoothing), Natural(label_smoothing=smoothing)
    assert_bit_equal_objectives(trades, natural)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_logit_pairing_of_no_weight_is_adversarial_training_bit_by_bit(share, smoothing):
    settings = {"clean_share": share, "label_smoothing": smoothing}
    assert_bit_equal_objectives(LogitPairing(weight=0, **settings), AdversarialTraining(**settings))


def assert_bit_equal_objectives(one, other):
    assert one.sides == other.sides
    assert one.terms == other.terms
    logits = logits_of_both()
    given = {side: logits[side] for side in other.sides}
    first, second = one(given, LABELS), other(given, LABELS)
    assert list(first) == list(second)
    for term in second:
        assert torch.equal(first[term], second[term]), term
    leaves = list(given.values())
    for mine, theirs in zip(
        torch.autograd.grad(sum(first.values()), leaves),
        torch.autograd.grad(sum(second.values()), leaves),
        strict=True,
    ):
        assert torch.equal(mine, theirs)


def test_which_passes_are_asked_for():
    assert Natural().sides == ("clean",)
    assert AdversarialTraining().sides == ("adversarial",)
    assert Free().sides == ("adversarial",)
    assert set(AdversarialTraining(clean_share=0.5).sides) == {"adversarial", "clean"}
    for objective in (LogitPairing(), LogitPairing(clean_share=0.0), LogitPairing(clean_share=1.0), Trades(), Mart()):
        assert set(objective.sides) == {"adversarial", "clean"}


@pytest.mark.parametrize("missing", SIDES)
@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("Trades", Trades()),
        ("Mart", Mart()),
        ("LogitPairing", LogitPairing()),
        ("LogitPairing", LogitPairing(clean_share=0.0)),
        ("LogitPairing", LogitPairing(clean_share=1.0)),
    ],
    ids=["trades", "mart", "alp", "alp_adversarial", "alp_clean"],
)
def test_a_missing_side_is_told_in_one_line(name, objective, missing):
    logits = logits_of_both()
    del logits[missing]
    with pytest.raises(InputError, match=rf"\bobjective {name}\b.*\bno {missing} ones") as caught:
        objective(logits, LABELS)
    assert "\n" not in str(caught.value)


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


@pytest.mark.parametrize(
    ("objective", "label", "values"),
    [
        (Trades(beta=2.0), 0, {"clean_cross_entropy": 0, "kl_divergence": 2000}),
        (Trades(beta=2.0), 1, {"clean_cross_entropy": 1000, "kl_divergence": 2000}),
        # -log p_y = 1000, and 1 - max p_k = exp(-1000) + exp(-1000)
        (Mart(weight=2.0), 0, {"boosted_cross_entropy": 2000 - math.log(2), "weighted_kl_divergence": 0}),
        (Mart(weight=2.0), 1, {"boosted_cross_entropy": 0, "weighted_kl_divergence": 2000}),
        (LogitPairing(weight=0.3), 0, {"adversarial_cross_entropy": 500, "logit_pairing": 0.3 * 2e6 / 3}),
    ],
)
def test_certain_predictions_give_finite_values_and_gradients(objective, label, values):
    logits = {"clean": torch.tensor([[1000.0, 0.0, 0.0]]), "adversarial": torch.tensor([[0.0, 1000.0, 0.0]])}
    for side in logits.values():
        side.requires_grad_()
    terms = objective(logits, torch.tensor([label]))
    for term, value in values.items():
        assert terms[term].item() == pytest.approx(value, rel=1e-6, abs=1e-6)
    gradients = torch.autograd.grad(sum(terms.values()), list(logits.values()))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("objective", [Trades(), Mart(), LogitPairing()], ids=["trades", "mart", "alp"])
def test_equal_sides_have_no_divergence(objective):
    logits = logits_of_both()
    same = {"clean": logits["clean"], "adversarial": logits["clean"].clone()}
    terms = objective(same, LABELS)
    assert abs(terms[objective.terms[-1]].item()) < 1e-15
    assert terms[objective.terms[0]].item() > 0.1


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, True, "0.5", None])
def test_a_wrong_share_is_refused(share):
    with pytest.raises(
        InputError, match=r"objective.clean_share is .*; it must be a number at least 0 and at most 1"
    ) as caught:
        AdversarialTraining(clean_share=share)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, True, "0.5", None])
@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        (Trades, "beta"),
        (Mart, "weight"),
        (LogitPairing, "weight"),
        (LogitPairing, "clean_share"),
        (Free, "replays"),
        *((kind, "label_smoothing") for kind in (Natural, AdversarialTraining, LogitPairing, Trades, Free)),
    ],
)
def test_a_wrong_setting_is_refused(kind, setting, value):
    with pytest.raises(InputError, match=rf"objective\.{setting} is ") as caught:
        kind(**{setting: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("replays", [0, 1.5, 2.0])
def test_replays_are_a_whole_number(replays):
    with pytest.raises(InputError, match=r"objective\.replays is .*; it must be a whole number at least 1"):
        Free(replays=replays)


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
