"""Normalisation: the formula by hand, one pixel at a time; errors; its place in front of the network."""

import pytest
import torch
from torch import nn

from nsr.errors import InputError
from nsr.models import Classifier, Normalize

MEAN, STD = (0.5, 0.25, 0.75), (0.25, 0.5, 0.125)  # exact in binary


def test_against_the_formula_by_hand() -> None:
    images = torch.rand(2, 3, 2, 3)
    normalised = Normalize(MEAN, STD)(images)
    assert normalised.shape == images.shape
    for sample, channel, row, column in torch.cartesian_prod(*map(torch.arange, images.shape)).tolist():
        expected = (images[sample, channel, row, column].item() - MEAN[channel]) / STD[channel]
        assert normalised[sample, channel, row, column].item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_constants_are_buffers_that_follow_the_net() -> None:
    normalize = Normalize([0, 0], [1, 2])
    assert {name: tuple(buffer.shape) for name, buffer in normalize.named_buffers()} == {
        "mean": (2, 1, 1),
        "std": (2, 1, 1),
    }
    assert list(normalize.state_dict()) == ["mean", "std"]
    assert not list(normalize.parameters())
    images = torch.rand(1, 2, 2, 2, dtype=torch.float64)
    assert normalize.double()(images).dtype == torch.float64
    assert normalize.std.dtype == torch.float64


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.5], [0.0], r"std\[0\] is 0.0; it must be a number above 0"),
        ([0.5, 0.5], [0.5, -1], r"std\[1\] is -1; it must be a number above 0"),
        ([0.5], [float("nan")], r"std\[0\] is nan; it must be a number above 0"),
        ([float("inf")], [0.5], r"mean\[0\] is inf; it must be a number"),
        (["0.5"], [0.5], r"mean\[0\] is '0.5'; it must be a number"),
        ([0.5, 0.5, 0.5], [0.5], "mean has 3 numbers and std 1; both need one a channel"),
        (0.5, [0.5], "mean is 0.5; it must be a list with one number a channel"),
        ([0.5], [], r"std is \[\]; it must be a list with one number a channel"),
        ([0.5], "1", "std is '1'; it must be a list with one number a channel"),
    ],
)
def test_impossible_constants_are_refused(mean: list[float], std: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Normalize(mean, std)


def test_channels_are_never_broadcast() -> None:
    with pytest.raises(InputError, match="images have 1 channels, but the normalisation has 3"):
        Normalize(MEAN, STD)(torch.rand(2, 1, 4, 4))


def test_classifier_normalises_first() -> None:
    net = nn.Flatten()
    images = torch.rand(2, 3, 2, 2)
    classifier = Classifier(net, MEAN, STD)
    assert classifier.net is net
    assert torch.equal(classifier(images), net(classifier.normalize(images)))
    assert not torch.equal(classifier(images), net(images))


def test_classifier_without_constants_takes_pixels_as_they_are() -> None:
    classifier = Classifier(nn.Flatten())
    images = torch.rand(2, 3, 2, 2)
    assert isinstance(classifier.normalize, nn.Identity)
    assert torch.equal(classifier(images), images.flatten(1))


def test_classifier_needs_both_constants_or_none() -> None:
    with pytest.raises(InputError, match=r"mean is \[0.5\] and std is None; give both, or neither"):
        Classifier(nn.Flatten(), [0.5])
    with pytest.raises(InputError, match=r"mean is None and std is \[0.5\]; give both, or neither"):
        Classifier(nn.Flatten(), None, [0.5])
