"""The analysis against a slow version: one image, one set, part after part; then its batches, memory and errors."""

from __future__ import annotations

import gc
import sys
import weakref

import pytest
import torch
from reference import (
    Counting,
    inventory,
    pattern_images,
    same_inventory,
    slow_mean_activation,
    slow_most_sensitive,
    slow_sensitivity,
    trained_net,
)
from torch import Tensor, nn

from nsr.attacks import GradientAttack, pgd
from nsr.errors import InputError
from nsr.features import capture_features
from nsr.interventions import Effects, Interventions, intervene
from nsr.interventions.controls import RANDOM, neuron_sets
from nsr.interventions.effects import KINDS
from nsr.interventions.pairs import Pairs, halves
from nsr.interventions.patching import Patcher
from nsr.interventions.ranking import attribution, conductance, rank_neurons
from nsr.layers import find_layers


def settings_of(**settings) -> Interventions:
    return Interventions(**{"fractions": [0.25, 0.5], "n_random_sets": 4, "n_bootstrap": 200, **settings})


@pytest.fixture(scope="module")
def case():
    """A net with a layer of maps ('2') and one of units ('5'), its images, labels and adversarial images."""
    images, labels = pattern_images(80, classes=4)
    net = trained_net(images, labels).double()
    images, labels = images.double(), labels.clone()
    labels[::9] = (labels[::9] + 1) % 4  # some that the network misclassifies
    return net, images, labels, pgd(net, images, labels, epsilon=0.12, steps=5, random_start=False)


@pytest.fixture(scope="module")
def effects(case) -> Effects:
    rankings = ["activation", "relative"]
    return intervene(*case, settings=settings_of(layers=["2", "5"], kinds=KINDS, rankings=rankings))


def row(effects: Effects, **wanted):
    (found,) = [each for each in effects.rows if all(getattr(each, name) == value for name, value in wanted.items())]
    return found


def half_of(case, half: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, adversarial images and labels of one half."""
    _, images, labels, adversarial = case
    index = halves(labels, seed=0)[half]
    return images[index], adversarial[index], labels[index]


def ranking_features(case, layer: str) -> tuple[Tensor, Tensor]:
    """A layer's clean and adversarial outputs on the ranking images."""
    images, adversarial, _ = half_of(case, 0)
    with torch.no_grad(), capture_features(case[0], [layer]) as features:
        case[0](images)
        clean = features[layer].clone()
        case[0](adversarial)
        return clean, features[layer].clone()


# ---------------------------------------------------------------- the definition
def patched(net: nn.Sequential, image: Tensor, layer: str, chosen: list[int], instead: Tensor) -> Tensor:
    """The logits of one image whose chosen neurons of one layer return `instead` (neuron, ...); part after part."""
    value = image[None]
    for name, part in net.named_children():
        value = part(value).clone()
        if name == layer:
            for neuron in chosen:
                value[0, neuron] = instead[neuron]
    return value[0]


def slow(case, layer, chosen, kind, means=None) -> tuple[int, list[float]]:
    """How many images the intervention has its effect on, and how far the margin shifts on each."""
    net, changed, shifts = case[0], 0, []
    with torch.no_grad(), capture_features(net, [layer]) as features:
        for image, other, label in zip(*half_of(case, 1), strict=True):
            logits = net(image[None])[0]
            clean = features[layer][0].clone()
            attacked = net(other[None])[0]
            adversarial = features[layer][0].clone()
            if logits.argmax() != label or (not kind.endswith("ablation") and attacked.argmax() == label):
                continue
            if kind == "patch_clean":
                start, instead, before = other, clean, attacked
            else:
                start, before = image, logits
                instead = {"patch_adversarial": adversarial, "zero_ablation": 0 * clean, "mean_ablation": means}[kind]
            after = patched(net, start, layer, chosen, instead)
            is_wrong = bool(after.argmax() != label)
            changed += not is_wrong if kind == "patch_clean" else is_wrong
            rise = slow_margin(after, label) - slow_margin(before, label)
            shifts.append(-rise if kind == "patch_clean" else rise)
    return changed, shifts


def slow_margin(logits: Tensor, label: Tensor) -> float:
    values = logits.tolist()
    return max(value for k, value in enumerate(values) if k != label) - values[label]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", ["2", "5"])
def test_against_a_slow_version(case, effects, layer, kind):
    clean, adversarial = ranking_features(case, layer)
    sensitivity = slow_sensitivity(clean, adversarial)
    scores = {
        "most_sensitive": sensitivity,
        "least_sensitive": sensitivity,
        "by_activation": slow_mean_activation(clean),
        "by_relative": slow_sensitivity(clean, adversarial, kind="relative"),
    }
    means = [clean[:, m].mean() for m in range(clean.shape[1])]
    squares = [float(((clean - adversarial)[:, m] ** 2).mean()) for m in range(clean.shape[1])]
    for fraction in (0.25, 0.5):
        count = int(fraction * len(sensitivity))
        for control, values in scores.items():
            order = slow_most_sensitive(values, len(values))
            chosen = order[-count:] if control == "least_sensitive" else order[:count]
            changed, shifts = slow(case, layer, chosen, kind, means)
            got = row(effects, layer=layer, kind=kind, fraction=fraction, control=control)
            assert got.images == len(shifts) > 5
            assert got.effect == pytest.approx(changed / len(shifts), abs=1e-6)
            assert got.margin == pytest.approx(sum(shifts) / len(shifts), abs=1e-5)
            for metric, weights in (("sensitivity_fraction", sensitivity), ("squared_difference_fraction", squares)):
                expected = sum(weights[m] for m in chosen) / sum(weights)
                assert getattr(got, metric) == pytest.approx(expected, abs=1e-6)
            top = slow_most_sensitive(sensitivity, count)
            assert got.overlap == pytest.approx(len({*chosen} & {*top}) / count, abs=1e-6)


def test_random_controls_are_means_of_their_sets(case, effects):
    """One set at a time, through the ordinary interface for a given set."""
    net, images, *_ = case
    patcher = Patcher(net, find_layers(net, images[:2], ["5"]), images)
    ranked = rank_neurons(patcher, [Pairs(*half_of(case, 0))])["5"]
    settings = {"fractions": [0.5], "n_random_sets": 4, "seed": 0, "layer": "5"}
    sets = neuron_sets(ranked.sensitivity, ranked.squared_difference, {}, **settings)
    for control in RANDOM:
        found = []
        for mask in sets.masks(0.5, control):
            changed, shifts = slow(case, "5", mask.nonzero()[:, 0].tolist(), "patch_clean")
            found.append(changed / len(shifts))
        got = row(effects, layer="5", kind="patch_clean", fraction=0.5, control=control)
        assert got.n_sets == 4
        assert got.effect == pytest.approx(sum(found) / 4, abs=1e-6)


def test_contrasts_are_differences_of_effects(effects):
    for each in effects.rows:
        if each.control in ("most_sensitive", "whole_layer"):
            assert each.contrast is None
            continue
        most = row(effects, layer=each.layer, kind=each.kind, fraction=each.fraction, control="most_sensitive")
        assert each.contrast == pytest.approx(most.effect - each.effect, abs=2e-6)
        assert each.margin_contrast == pytest.approx(most.margin - each.margin, abs=2e-6)
        assert each.contrast_low <= each.contrast <= each.contrast_high
        assert each.effect_low <= each.effect <= each.effect_high


# ---------------------------------------------------------------- batches, seeds, halves
def test_rows_do_not_depend_on_batches(case):
    whole = intervene(*case, settings=settings_of(layers=["2"], kinds=KINDS))
    for batch_size, internal in ((7, 256), (80, 1), (33, 5)):
        settings = settings_of(layers=["2"], kinds=KINDS, internal_batch_size=internal)
        parts = intervene(*case, settings=settings, batch_size=batch_size)
        assert parts.rows == whole.rows
        assert parts.images == whole.images


def test_the_seed_decides_and_the_network_is_left_as_it_was(case):
    net = case[0]
    net[1].train()
    before = inventory(net)
    attack = GradientAttack(epsilon=0.12, steps=2)
    rows = [intervene(*case[:3], attack, settings=settings_of(layers=["5"], seed=seed)).rows for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]
    same_inventory(before, inventory(net))
    net[1].eval()


def test_halves_are_balanced_by_class():
    labels = torch.tensor([0] * 11 + [1] * 20 + [2] * 5)
    ranking, tested = halves(labels, seed=3)
    assert sorted([*ranking.tolist(), *tested.tolist()]) == list(range(36))
    counts = [torch.bincount(labels[half], minlength=3) for half in (ranking, tested)]
    assert (counts[0] - counts[1]).abs().max() <= 1
    assert not torch.equal(ranking, halves(labels, seed=4)[0])


def test_the_ranking_does_not_depend_on_the_tested_images(case):
    _, images, labels, adversarial = case
    _, tested = halves(labels, seed=0)
    other = adversarial.clone()
    other[tested] = images[tested] + 0.9 * (adversarial[tested] - images[tested])
    results = [intervene(*case[:3], each, settings=settings_of(layers=["5"])) for each in (other, adversarial)]
    for one, two in zip(*(result.rows for result in results), strict=True):
        for name in ("sensitivity_fraction", "overlap", "neurons"):
            assert getattr(one, name) == getattr(two, name)
    assert results[0].layers == results[1].layers
    assert results[0].rows != results[1].rows


# ---------------------------------------------------------------- passes and memory
def test_what_precedes_the_layers_runs_once(case):
    """Two passes per batch, clean and adversarial, for all layers, fractions, sets and kinds together."""
    net, images, *_ = case
    first, last = Counting(net[0]), Counting(net[6])
    counted = nn.Sequential(first, *net[1:6], last)
    layers = find_layers(counted, images[:2], ["2", "5"])
    first.passes = first.images = 0
    batches = ([Pairs(*part) for part in zip(*(v.split(20) for v in half_of(case, h)), strict=True)] for h in (0, 1))
    settings_of().measure(counted, layers, *batches)
    trial = 1  # the layers come after it, so that no trial of a patched pass runs it either
    assert first.passes == trial + 2 * 2 + 2 * 2
    assert first.images == 3 + 2 * 40 + 2 * 40
    assert last.images > 5 * first.images


@pytest.mark.slow
def test_no_batch_outlives_its_turn(case):
    net, images, labels, adversarial = case
    layers = find_layers(net, images[:2], ["2", "5"])
    seen: list[weakref.ref] = []
    kept: list[int] = []

    def pairs(half):
        for part in half.split(14):
            gc.collect()
            assert all(reference() is None for reference in seen[:-2]), "an earlier batch is still there"
            kept.append(sum(value.numel() for value in gc.get_objects() if type(value) is Tensor))
            pair = Pairs(images[part], adversarial[part], labels[part])
            seen.extend(weakref.ref(value) for value in pair[:2])
            yield pair

    settings_of().measure(net, layers, *map(pairs, halves(labels, seed=0)))
    assert len(seen) == 12
    # between two batches: two values for each set and image, and far less than the features of one batch
    outcomes = 2 * 2 * 2 * 33 * 14  # values, kinds, layers, sets at most, images
    assert kept[-1] - kept[-2] <= outcomes


# ---------------------------------------------------------------- results
def test_the_data_frame_and_metrics_of_the_layers(case, effects):
    frame = effects.frame()
    assert len(frame) == len(effects.rows) == 2 * 4 * (2 * 7 + 1)
    by = ("by_activation", "by_relative")
    assert set(frame.control) == {"most_sensitive", "least_sensitive", "whole_layer", *RANDOM, *by}
    clean, adversarial = ranking_features(case, "5")
    sensitivity, activation = slow_sensitivity(clean, adversarial), slow_mean_activation(clean)
    centered = [[value - sum(values) / len(values) for value in values] for values in (sensitivity, activation)]
    covariance = sum(a * b for a, b in zip(*centered, strict=True))
    correlation = covariance / (sum(a * a for a in centered[0]) * sum(b * b for b in centered[1])) ** 0.5
    metrics = effects.layers["5"]
    assert metrics["correlation_of_sensitivity_and_activation"] == pytest.approx(correlation, abs=1e-9)
    assert metrics["mean_sensitivity"] == pytest.approx(sum(sensitivity) / len(sensitivity), rel=1e-9)
    assert effects.images["tested"] == 40
    assert effects.images["tested"] > effects.images["correct"] > effects.images["fooled"] > 0


def test_a_layer_of_one_neuron():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Sigmoid(), nn.Linear(1, 2))
    images, _ = pattern_images(40, classes=2)
    with torch.no_grad():
        labels = net(images).argmax(1)
    settings = settings_of(layers=["2"], kinds=["zero_ablation"])
    effects = intervene(net, images, labels, GradientAttack(epsilon=0.5, steps=5), settings=settings)
    assert effects.layers["2"]["correlation_of_sensitivity_and_activation"] is None
    assert {each.neurons for each in effects.rows} == {1}


# ---------------------------------------------------------------- attribution
@pytest.mark.parametrize("layer", ["2", "5"])
def test_attribution_is_the_slope_of_patching_one_neuron(case, layer):
    """Moving one neuron a millionth of the way to its clean outputs, image by image."""
    net, (images, adversarial, labels) = case[0], (part[:6] for part in half_of(case, 0))
    patcher = Patcher(net, find_layers(net, images[:2], [layer]), images)
    clean, attacked = patcher.record(images), patcher.record(adversarial)
    before = inventory(net)
    found = attribution(patcher, layer, clean, attacked, labels)
    same_inventory(before, inventory(net))
    part = 1e-6
    with torch.no_grad():
        for i, label in enumerate(labels):
            old, new = attacked.features[layer][i], clean.features[layer][i]
            start = slow_margin(net(adversarial[i : i + 1])[0], label)
            for neuron in range(0, found.shape[1], 5):
                moved = patched(net, adversarial[i], layer, [neuron], old + part * (new - old))
                slope = (start - slow_margin(moved, label)) / part
                assert float(found[i, neuron]) == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_attribution_and_squared_difference_rank(case):
    rankings = ["squared_difference", "attribution"]
    with torch.inference_mode():
        effects = intervene(*case, settings=settings_of(layers=["5"], rankings=rankings), batch_size=25)
    images, adversarial, labels = half_of(case, 0)
    patcher = Patcher(case[0], find_layers(case[0], images[:2], ["5"]), images)
    both = patcher.record(images), patcher.record(adversarial)
    squares = ((both[0].features["5"] - both[1].features["5"]) ** 2).mean(0)
    for name, scores in zip(rankings, (squares, attribution(patcher, "5", *both, labels).mean(0)), strict=True):
        changed, shifts = slow(case, "5", slow_most_sensitive(scores.tolist(), 16), "patch_clean")
        got = row(effects, kind="patch_clean", fraction=0.5, control=f"by_{name}")
        assert got.effect == pytest.approx(changed / len(shifts), abs=1e-6)


# ---------------------------------------------------------------- conductance
def test_conductance_sums_to_the_change_of_the_logit(case):
    pytest.importorskip("captum")
    net, images, labels, adversarial = case
    with torch.no_grad():
        change = (net(adversarial[:6]) - net(images[:6])).gather(1, labels[:6, None])[:, 0]
    before = inventory(net)
    for layer in find_layers(net, images[:2], ["2", "5"]):
        flow = conductance(net, layer, images[:6], adversarial[:6], labels[:6])
        assert flow.shape == (6, layer.neurons)
        torch.testing.assert_close(flow.sum(1), change, rtol=0.02, atol=0.05)
    same_inventory(before, inventory(net))


def test_conductance_ranks(case):
    pytest.importorskip("captum")
    effects = intervene(*case, settings=settings_of(layers=["5"], rankings=["conductance"]), batch_size=25)
    (layer,) = find_layers(case[0], case[1][:2], ["5"])
    scores = conductance(case[0], layer, *half_of(case, 0)).abs().mean(0)
    changed, shifts = slow(case, "5", slow_most_sensitive(scores.tolist(), 16), "patch_clean")
    got = row(effects, kind="patch_clean", fraction=0.5, control="by_conductance")
    assert got.effect == pytest.approx(changed / len(shifts), abs=1e-6)


def test_without_captum(case, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(InputError, match=r"conductance, which needs captum: pip install captum"):
        intervene(*case, settings=settings_of(rankings=["conductance"]))


# ---------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fractions": [0.5, 1.5]}, r"fractions entry is 1\.5; it must be a number above 0 and at most 1; a fraction"),
        ({"fractions": [0]}, "fractions entry is 0; it must be a number above 0"),
        ({"fractions": []}, r"fractions is \[\]; it must be a list of different entries, at least one"),
        ({"fractions": [0.5, 0.5]}, "it must be a list of different entries"),
        ({"fractions": 0.5}, r"fractions is 0\.5; it must be a list"),
        ({"kinds": ["patch_claen"]}, r"kinds entry is 'patch_claen'; it must be one of patch_clean, .* \(did you mean"),
        ({"rankings": ["size"]}, "rankings entry is 'size'; it must be one of activation, relative, squared"),
        ({"n_random_sets": 1}, "n_random_sets is 1; it must be a whole number at least 2"),
        ({"n_bootstrap": 10}, "n_bootstrap is 10"),
        ({"internal_batch_size": 0}, "internal_batch_size is 0"),
        ({"layers": ["9"]}, "no layer matches '9' in Sequential; it has '0', '1', '2', '3'"),
    ],
)
def test_bad_settings(case, settings, message):
    with pytest.raises(InputError, match=message):
        intervene(*case, settings=Interventions(**settings))


def test_bad_images(case):
    net, images, labels, adversarial = case
    for arguments, settings, message in (
        (case, {"batch_size": 0}, "batch_size is 0"),
        ((*case[:3], torch.zeros(3, 1, 8, 8)), {}, r"attack is a tensor of shape \(3, 1, 8, 8\)"),
        ((net, images[:19], labels[:19], adversarial[:19]), {}, "images is 19; interventions need 20 or more"),
    ):
        with pytest.raises(InputError, match=message):
            intervene(*arguments, **settings)
    intervene(net, images[:20], labels[:20], GradientAttack(epsilon=0.12, steps=2), settings=settings_of(layers=["5"]))


def test_where_no_image_is_fooled(case):
    net, images, labels, _ = case
    with pytest.raises(InputError, match="none of the 35 correctly classified images is misclassified under the"):
        intervene(net, images, labels, images, settings=settings_of(layers=["5"]))
    effects = intervene(net, images, labels, images, settings=settings_of(layers=["5"], kinds=KINDS))
    assert set(effects.skipped) == {"patch_clean", "patch_adversarial"}
    assert effects.kinds() == ["zero_ablation", "mean_ablation"]
    with torch.no_grad():
        wrong = (net(images).argmax(1) + 1) % 4
    with pytest.raises(InputError, match="none of the 40 tested images is correctly classified without the attack"):
        intervene(net, images, wrong, images, settings=settings_of(layers=["5"], kinds=["zero_ablation"]))
