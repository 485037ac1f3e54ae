"""The stabiliser's further settings: which sensitivities choose, which distance is held small, how it is summed."""

from __future__ import annotations

import math

import pytest
import torch

from nsr.errors import InputError
from nsr.sensitivity import neuron_movement, neuron_sensitivity
from nsr.stabilizer import SensitivityStabilizer

SHAPES = {"conv": (3, 5, 2, 2), "tokens": (3, 4, 6), "fc": (3, 7)}
CONVOLUTIONS = {"conv1": (3, 5, 2, 2), "conv2": (3, 4, 1, 3)}


def sides(seed: int = 0, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return [
        {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
        for _ in range(2)
    ]


def slow_movement(clean, adversarial, distance: str, neuron_dim: int) -> list[float]:
    """Neuron by neuron and sample by sample, in Python's floats."""
    answer = []
    for m in range(clean.shape[neuron_dim]):
        total = 0.0
        for i in range(len(clean)):
            first, second = (
                side[i].movedim(neuron_dim, -1)[..., m].flatten().tolist()
                if neuron_dim == -1
                else side[i, m].flatten().tolist()
                for side in (clean, adversarial)
            )
            pairs = list(zip(first, second, strict=True))
            if distance == "l1":
                total += sum(abs(a - b) for a, b in pairs) / len(pairs)
            elif distance == "l2":
                total += math.sqrt(sum((a - b) ** 2 for a, b in pairs)) / math.sqrt(len(pairs))
            else:
                lengths = [math.sqrt(sum(value**2 for value in side)) for side in (first, second)]
                total += 1 - sum(a * b for a, b in pairs) / (lengths[0] * lengths[1]) if all(lengths) else any(lengths)
        answer.append(total / len(clean))
    return answer


MAPS, TOKENS, UNITS = ((3, 5, 2, 2), 1), ((3, 4, 6), -1), ((4, 7), 1)


@pytest.mark.parametrize(
    ("distance", "shape", "neuron_dim"),
    [(distance, *layout) for distance in ("l1", "l2") for layout in (MAPS, TOKENS, UNITS)]
    + [("cosine", *layout) for layout in (MAPS, TOKENS)],
)
def test_each_distance_is_its_equation(distance, shape, neuron_dim):
    generator = torch.Generator().manual_seed(1)
    clean, adversarial = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    got = neuron_movement(clean, adversarial, distance=distance, neuron_dim=neuron_dim)
    torch.testing.assert_close(
        got, torch.tensor(slow_movement(clean, adversarial, distance, neuron_dim), dtype=torch.float64)
    )


@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
def test_a_neuron_that_does_not_move_has_a_finite_gradient(distance):
    clean = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    clean[:, 0] = 0  # silent on both sides
    clean[0, 1] = 0
    adversarial = clean.clone()
    adversarial[:, 2] += 1
    clean.requires_grad_()
    movement = neuron_movement(clean, adversarial, distance=distance)
    assert movement[[0, 1, 3]].abs().max() < 1e-12
    assert movement[2] > 0.01
    (gradient,) = torch.autograd.grad(movement.sum(), clean)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_sensitivity_chooses_whatever_distance_is_held_small(distance, reduction):
    clean, adversarial = sides(shapes=CONVOLUTIONS)
    stabilizer = SensitivityStabilizer(weight=0.7, top=2, distance=distance, reduction=reduction)
    layers = []
    for name in clean:
        sensitivity = neuron_sensitivity(clean[name], adversarial[name]).tolist()
        chosen = sorted(range(len(sensitivity)), key=lambda neuron, row=sensitivity: -row[neuron])[:2]
        moved = slow_movement(clean[name], adversarial[name], distance, 1)
        layers.append([moved[neuron] for neuron in chosen])
    flat = [value for layer in layers for value in layer]
    expected = sum(flat) if reduction == "sum" else sum(sum(layer) / 2 for layer in layers) / len(layers)
    assert float(stabilizer(clean, adversarial)) == pytest.approx(0.7 * expected, rel=1e-9)


def test_a_running_average_chooses():
    stabilizer = SensitivityStabilizer(weight=1, top=1, refresh="average", decay=0.75)
    average = None
    for seed in range(4):
        clean, adversarial = sides(seed, CONVOLUTIONS)
        batch = {name: neuron_sensitivity(clean[name], adversarial[name]) for name in clean}
        average = batch if average is None else {n: 0.75 * average[n] + 0.25 * batch[n] for n in batch}
        expected = sum(float(batch[name][average[name].argmax()]) for name in batch) / 2
        assert float(stabilizer(clean, adversarial)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("refresh", "taken"), [("epoch", 1), ("once", 0)])
def test_what_was_remembered_chooses(refresh, taken):
    stabilizer = SensitivityStabilizer(weight=1, top=1, refresh=refresh)
    clean, adversarial = sides(shapes=CONVOLUTIONS)
    with pytest.raises(InputError, match=f"stabilizer.refresh is '{refresh}'.*conv1, conv2.*call remember first"):
        stabilizer(clean, adversarial)
    given = [{"conv1": torch.eye(5)[k], "conv2": torch.eye(4)[k]} for k in (2, 3)]
    for sensitivities in given:
        stabilizer.remember(sensitivities)
    neuron = (2, 3)[taken]
    expected = sum(float(neuron_sensitivity(clean[n], adversarial[n])[neuron]) for n in clean) / 2
    assert float(stabilizer(clean, adversarial)) == pytest.approx(expected, rel=1e-12)


def test_the_share_of_a_ramp_scales_the_term():
    clean, adversarial = sides()
    stabilizer = SensitivityStabilizer()
    whole = float(stabilizer(clean, adversarial))
    stabilizer.share = 0.25
    assert float(stabilizer(clean, adversarial)) == pytest.approx(whole / 4, rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"refresh": "always"}, r"stabilizer.refresh is 'always'; it must be one of batch, average, epoch, once"),
        ({"distance": "l3"}, r"stabilizer.distance is 'l3'; it must be one of l1, l2, cosine"),
        ({"reduction": "max"}, r"stabilizer.reduction is 'max'; it must be one of mean, sum"),
        ({"decay": 1.5}, r"stabilizer.decay is 1.5; it must be a number at least 0 and at most 1"),
    ],
)
def test_wrong_settings_are_told_in_one_line(settings, message):
    with pytest.raises(InputError, match=message) as caught:
        SensitivityStabilizer(**settings)
    assert "\n" not in str(caught.value)


def test_one_value_has_no_direction():
    clean, adversarial = sides()
    with pytest.raises(InputError, match=r"distance is 'cosine', but a neuron of fc has one value.*stabilizer.layers"):
        SensitivityStabilizer(distance="cosine")(clean, adversarial)
    assert float(SensitivityStabilizer(distance="cosine", layers=["conv", "tokens"])(clean, adversarial)) > 0
