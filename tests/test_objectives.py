"""Each objective against its equation in explicit loops, gradients included; the interface of any objective."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from reference import (
    slow_boosted_cross_entropy,
    slow_cross_entropy,
    slow_kl_divergence,
    slow_logit_pairing,
    slow_weighted_kl_divergence,
)
from torch import nn
from torch.nn import functional as F

from nsr.errors import InputError
from nsr.losses import kl_divergence
from nsr.objectives import (
    INPUTS,
    AdversarialTraining,
    Free,
    LogitPairing,
    Mart,
    Natural,
    Trades,
    compute_terms,
    required_inputs,
    required_views,
)

LABELS = torch.tensor([2, 0, 1, 1, 0])
VIEWS = ("clean", "adversarial")


def logits_of_both():
    generator = torch.Generator().manual_seed(0)
    return {view: torch.randn(5, 3, generator=generator, dtype=torch.float64).requires_grad_() for view in VIEWS}


def terms_of(objective, logits, labels=LABELS):
    """By the interface, which makes no pass that is not required."""
    named = {f"{view}_logits": logits[view] for view in required_views(objective)}
    return compute_terms(objective, {**named, "labels": labels})


def network():
    """The parameters of a net of two layers, and the inputs of the two views."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    parameters = [draw(4, 6), draw(6), draw(6, 3), draw(3)]
    clean = draw(5, 4)
    inputs = {"clean": clean, "adversarial": clean + 0.3 * draw(5, 4).sign()}
    return [parameter.requires_grad_() for parameter in parameters], inputs


def logits_of_network(parameters, inputs):
    first, first_bias, second, second_bias = parameters
    return {view: (images @ first + first_bias).relu() @ second + second_bias for view, images in inputs.items()}


def cross_entropies(x, *, clean_weight=0.0, smoothing=0.0):
    weights = {"adversarial": 1 - clean_weight, "clean": clean_weight}
    return {
        f"{view}_cross_entropy": weight * slow_cross_entropy(x[view], LABELS, smoothing)
        for view, weight in weights.items()
        if weight
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


ONE, OTHER, BOTH, CLEAN_FIRST = ("clean",), ("adversarial",), ("adversarial", "clean"), ("clean", "adversarial")
CLEAN = {"weight": 0.7, "clean_weight": 1.0}
EXPECTED = {  # an objective, its views in the order of the passes, its terms by hand in their order
    "natural": (Natural(), ONE, natural_by_hand),
    "natural_smooth": (Natural(label_smoothing=0.1), ONE, partial(natural_by_hand, smoothing=0.1)),
    "adversarial": (AdversarialTraining(), OTHER, cross_entropies),
    "half_smooth": (
        AdversarialTraining(clean_weight=0.5, label_smoothing=0.1),
        BOTH,
        partial(cross_entropies, clean_weight=0.5, smoothing=0.1),
    ),
    "a_tenth": (AdversarialTraining(clean_weight=0.1), BOTH, partial(cross_entropies, clean_weight=0.1)),
    "all_clean": (AdversarialTraining(clean_weight=1.0), ONE, natural_by_hand),
    "free_smooth": (Free(label_smoothing=0.1), OTHER, partial(cross_entropies, smoothing=0.1)),
    "alp": (LogitPairing(), BOTH, partial(pairing_by_hand, weight=0.5, clean_weight=0.5)),
    "alp_smooth": (
        LogitPairing(weight=1.3, clean_weight=0.2, label_smoothing=0.1),
        BOTH,
        partial(pairing_by_hand, weight=1.3, clean_weight=0.2, smoothing=0.1),
    ),
    "alp_adversarial": (LogitPairing(weight=0.7, clean_weight=0.0), BOTH, partial(pairing_by_hand, weight=0.7)),
    "alp_clean": (LogitPairing(**CLEAN), BOTH, partial(pairing_by_hand, **CLEAN)),
    "trades": (Trades(), CLEAN_FIRST, partial(trades_by_hand, beta=6.0)),
    "trades_smooth": (
        Trades(beta=1.7, label_smoothing=0.1),
        CLEAN_FIRST,
        partial(trades_by_hand, beta=1.7, smoothing=0.1),
    ),
    "mart": (Mart(), BOTH, partial(mart_by_hand, weight=5.0)),
    "mart_light": (Mart(weight=0.6), BOTH, partial(mart_by_hand, weight=0.6)),
}


def assert_terms_and_gradients(got, expected, leaves):
    assert list(got) == list(expected), "also their order, which the columns of metrics.csv have"
    for term, value in expected.items():
        assert got[term].shape == ()
        torch.testing.assert_close(got[term], value, rtol=1e-11, atol=0)
        settings = {"retain_graph": True, "allow_unused": True}
        mine, wanted = (torch.autograd.grad(terms[term], leaves, **settings) for terms in (got, expected))
        for gradient, by_hand in zip(mine, wanted, strict=True):
            if by_hand is None:  # a view that the term does not use
                assert gradient is None
                continue
            torch.testing.assert_close(gradient, by_hand, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("case", EXPECTED)
def test_terms_are_the_equation_gradients_of_logits_and_of_a_networks_parameters_included(case):
    objective, views, by_hand = EXPECTED[case]
    assert required_views(objective) == views
    logits = logits_of_both()
    leaves = [logits[view] for view in views]
    got = terms_of(objective, logits)
    assert_terms_and_gradients(got, by_hand(logits), leaves)
    whole = torch.autograd.grad(sum(got.values()), leaves)
    assert all(gradient.ne(0).all() for gradient in whole), "the gradient flows through every required view"
    parameters, inputs = network()
    logits = logits_of_network(parameters, inputs)
    assert_terms_and_gradients(terms_of(objective, logits), by_hand(logits), parameters)


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
    for logits in (clean, adversarial):
        logits.requires_grad_()
    mine = sum(Mart(weight=5.0)(clean_logits=clean, adversarial_logits=adversarial, labels=labels).values())
    theirs = published_mart(clean, adversarial, labels, 5.0)
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=0)
    gradients = [torch.autograd.grad(value, (clean, adversarial)) for value in (mine, theirs)]
    for gradient, wanted in zip(*gradients, strict=True) if scale <= 1 else ():  # their constants cap steep logarithms
        assert float((gradient - wanted).norm() / wanted.norm()) < 1e-3


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (partial(Trades, beta=0), Natural),
        *(
            (partial(LogitPairing, weight=0, clean_weight=weight), partial(AdversarialTraining, clean_weight=weight))
            for weight in (0.0, 0.3, 1.0)
        ),
    ],
)
def test_without_weight_of_its_own_term_an_objective_is_bit_identical_to_its_baseline(one, other, smoothing):
    one, other = one(label_smoothing=smoothing), other(label_smoothing=smoothing)
    assert required_inputs(one) == required_inputs(other)
    logits = logits_of_both()
    first, second = terms_of(one, logits), terms_of(other, logits)
    assert list(first) == list(second)
    leaves = [logits[view] for view in required_views(other)]
    gradients = [torch.autograd.grad(sum(terms.values()), leaves) for terms in (first, second)]
    for mine, theirs in zip((*first.values(), *gradients[0]), (*second.values(), *gradients[1]), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("objective", "label", "values"),
    [
        (AdversarialTraining(clean_weight=0.5), 0, {"clean_cross_entropy": 0, "adversarial_cross_entropy": 500}),
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
    for of_view in logits.values():
        of_view.requires_grad_()
    terms = terms_of(objective, logits, torch.tensor([label]))
    for term, value in values.items():
        assert terms[term].item() == pytest.approx(value, rel=1e-6, abs=1e-6)
    gradients = torch.autograd.grad(sum(terms.values()), list(logits.values()))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, True, "0.5", None])
@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        (Trades, "beta"),
        (Mart, "weight"),
        (LogitPairing, "weight"),
        (LogitPairing, "clean_weight"),
        (AdversarialTraining, "clean_weight"),
        (Free, "replays"),
        *((kind, "label_smoothing") for kind in (Natural, AdversarialTraining, LogitPairing, Trades, Free)),
    ],
)
def test_a_wrong_setting_is_refused(kind, setting, value):
    with pytest.raises(InputError, match=rf"^objective\.{setting} is .*; it must be a (whole )?number at least"):
        kind(**{setting: value})


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        *((kind, "label_smoothing", 1.1) for kind in (Natural, AdversarialTraining, LogitPairing, Trades, Free)),
        *((AdversarialTraining, "clean_weight", 1.1), (Free, "replays", 2.0)),
    ],
)
def test_a_setting_beyond_its_bound_is_refused(kind, setting, value):
    with pytest.raises(InputError, match=rf"objective\.{setting} is {value}"):
        kind(**{setting: value})


def test_trades_brings_the_loss_of_its_attack():
    clean, adversarial = logits_of_both().values()
    assert torch.equal(Trades().attack_loss(adversarial, clean, LABELS), kl_divergence(clean, adversarial))


def mean_squares(adversarial_logits, labels, temperature=2.0):
    """An objective in the form of a function with a setting."""
    return (adversarial_logits / temperature - F.one_hot(labels, 3)).square().mean()


class FeaturePairing:
    """Cross-entropy, and the squared differences of the features of clean and adversarial images."""

    def __call__(self, clean_logits, labels, clean_features, adversarial_features):
        pairs = [(clean_features[layer], adversarial_features[layer]) for layer in clean_features]
        pairing = torch.stack([F.mse_loss(clean, adversarial) for clean, adversarial in pairs]).mean()
        return {"cross_entropy": F.cross_entropy(clean_logits, labels), "pairing": 0.5 * pairing}


class ChannelSuppression(nn.Module):
    """As in CAS: a classifier of the features, whose weights of the label's class suppress the other channels."""

    def __init__(self, channels=4, classes=3):
        super().__init__()
        self.auxiliary = nn.Linear(channels, classes, bias=False)

    def forward(self, adversarial_features, labels):
        pooled = adversarial_features["layer"].flatten(2).mean(2)
        suppressed = pooled * self.auxiliary.weight[labels]
        return F.cross_entropy(self.auxiliary(suppressed), labels)


class WithSettings:
    """Inputs that the signature does not show."""

    inputs = ("clean_images", "net", "clean_logits")

    def __call__(self, **inputs):
        return {"own_pass": inputs["net"](inputs["clean_images"]).sum(), "of_logits": inputs["clean_logits"].sum()}


def all_inputs():
    generator = torch.Generator().manual_seed(3)
    images = {f"{view}_images": torch.rand(5, 4, 2, 2, generator=generator) for view in VIEWS}
    features = {view: images[f"{view}_images"].clone().requires_grad_() for view in VIEWS}
    return {
        **{f"{view}_logits": logits for view, logits in logits_of_both().items()},
        **{f"{view}_features": {"layer": features[view]} for view in VIEWS},
        **images,
        "labels": LABELS,
        "net": nn.Sequential(nn.Flatten(), nn.Linear(16, 3)),
    }


@pytest.mark.parametrize(
    ("objective", "inputs", "views", "terms"),
    [
        (mean_squares, ("adversarial_logits", "labels"), ("adversarial",), ["mean_squares"]),
        (partial(mean_squares, temperature=3.0), ("adversarial_logits", "labels"), ("adversarial",), ["mean_squares"]),
        (lambda clean_logits: clean_logits.sum(), ("clean_logits",), ("clean",), ["lambda"]),
        (
            FeaturePairing(),
            ("clean_logits", "labels", "clean_features", "adversarial_features"),
            ("clean", "adversarial"),
            ["cross_entropy", "pairing"],
        ),
        (ChannelSuppression(), ("adversarial_features", "labels"), ("adversarial",), ["channel_suppression"]),
        (WithSettings(), ("clean_images", "net", "clean_logits"), ("clean",), ["own_pass", "of_logits"]),
    ],
    ids=["function", "partial", "lambda", "feature_pairing", "cas", "declared"],
)
def test_an_objective_of_the_users(objective, inputs, views, terms):
    assert required_inputs(objective) == inputs
    assert required_views(objective) == views
    given = {name: value for name, value in all_inputs().items() if name in inputs}
    got = compute_terms(objective, given)
    assert list(got) == terms
    sum(got.values()).backward()
    for name in set(inputs) & {f"{view}_features" for view in VIEWS}:
        assert given[name]["layer"].grad.abs().sum() > 0


def loss(clean_logits):
    return clean_logits.mean()


def test_a_term_does_not_take_the_name_of_a_metric():
    assert list(compute_terms(loss, all_inputs())) == ["loss_term"]


def returning(value):
    return lambda clean_logits: value(clean_logits)


@pytest.mark.parametrize(
    ("objective", "match"),
    [
        ({"a": 1}, r"objective is \{'a': 1\}; it must be a function or object of clean_logits"),
        (lambda logits, labels: 0, "has the input 'logits'; it must be one of clean_logits, .* or a parameter with a"),
        (lambda clean_logit: 0, r"did you mean 'clean_logits'\?"),
        (lambda: 0, "has no input; it must name some of"),
        (Trades, "objective is <class .*Trades'>; it must be a function or object"),
        (returning(lambda x: x.mean().item()), r"returned .*; it must return a scalar tensor or \{name"),
        (returning(lambda x: {}), r"returned \{\}; it must return"),
        (returning(lambda x: x.mean(1)), r"is torch.float64 of shape \(5,\); it must be a scalar float tensor"),
        (returning(lambda x: {"a": x.mean(), "b": 0.5}), "the term 'b' .* is 0.5; it must be a scalar float tensor"),
        (returning(lambda x: {"stabilizer": x.mean()}), "names a term 'stabilizer'"),
        (returning(lambda x: x.detach().mean()), "carry no gradient; they must not be detached"),
        (lambda clean_logits, adversarial_features: 0, "needs clean_logits, adversarial_features; it did not get adv"),
    ],
)
def test_an_objective_that_does_not_fit_is_refused_in_one_line(objective, match):
    with pytest.raises(InputError, match=match):
        compute_terms(objective, {"clean_logits": logits_of_both()["clean"], "labels": LABELS})
    assert len(INPUTS) == 8
