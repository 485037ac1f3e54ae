"""Normalization by hand, one pixel at a time; its place in front of the network; the logits in any output."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nsr.errors import InputError
from nsr.models import Classifier, Normalize, select_output

MEAN, STD = (0.5, 0.25, 0.75), (0.25, 0.5, 0.125)  # exact in binary


def test_against_the_formula_by_hand() -> None:
    images = torch.rand(2, 3, 2, 3)
    normalized = Normalize(MEAN, STD)(images)
    assert normalized.shape == images.shape
    for sample, channel, row, column in torch.cartesian_prod(*map(torch.arange, images.shape)).tolist():
        expected = (images[sample, channel, row, column].item() - MEAN[channel]) / STD[channel]
        assert normalized[sample, channel, row, column].item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_constants_are_buffers_that_follow_the_net() -> None:
    normalize = Normalize([0, 0], [1, 2])
    assert {name: tuple(tensor.shape) for name, tensor in normalize.state_dict().items()} == {
        "mean": (2, 1, 1),
        "std": (2, 1, 1),
    }
    assert not list(normalize.parameters())
    assert normalize.double()(torch.rand(1, 2, 2, 2, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.5, 0.5], [0.5, -1], r"std\[1\] is -1; it must be a number above 0"),
        ([0.5], [float("nan")], r"std\[0\] is nan; it must be a number above 0"),
        (["0.5"], [0.5], r"mean\[0\] is '0.5'; it must be a number"),
        ([0.5, 0.5, 0.5], [0.5], "mean has 3 numbers and std 1; both need one per channel"),
        (0.5, [0.5], "mean is 0.5; it must be a list with one number per channel"),
        ([0.5], "1", "std is '1'; it must be a list with one number per channel"),
    ],
)
def test_impossible_constants_are_refused(mean: Any, std: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Normalize(mean, std)


def test_the_classifier_normalizes_first() -> None:
    net, images = nn.Flatten(), torch.rand(2, 3, 2, 2)
    classifier = Classifier(net, MEAN, STD)
    assert classifier.net is net
    assert torch.equal(classifier(images), net(Normalize(MEAN, STD)(images)))
    assert torch.equal(Classifier(net)(images), images.flatten(1))  # pixels as they are
    with pytest.raises(InputError, match="images have 1 channels, but the normalization has 3"):
        classifier(torch.rand(2, 1, 4, 4))
    with pytest.raises(InputError, match=r"mean is \[0.5\] and std is None; give both, or neither"):
        Classifier(net, [0.5])


Named = namedtuple("Named", ["aux", "logits"])


@dataclass
class Output:
    loss: None
    logits: Tensor


class Plain:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


LOGITS = torch.rand(2, 3)


@pytest.mark.parametrize(
    ("result", "output"),
    [
        (LOGITS, None),
        (LOGITS, "logits"),  # Inception-V3 returns a named tuple in training alone
        ((None, LOGITS), 1),
        ([LOGITS], 0),
        ({"logits": LOGITS}, "logits"),
        (OrderedDict({3: LOGITS}), 3),
        (Named(None, LOGITS), "logits"),
        (Named(None, LOGITS), 1),
        (Output(None, LOGITS), "logits"),
        (Plain(LOGITS), "logits"),
    ],
)
def test_the_logits_are_selected(result: Any, output: Any) -> None:
    assert select_output(result, output) is LOGITS
    assert Classifier(OutputOf(result), MEAN, STD, output=output)(torch.rand(2, 3, 2, 2)) is LOGITS


class OutputOf(nn.Module):
    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    def forward(self, images: Tensor) -> Any:
        return self.result


@pytest.mark.parametrize(
    ("result", "output", "message"),
    [
        ((None, LOGITS), None, "returns tuple, and model.output is None; it must be one of the tensors 1; set"),
        ((LOGITS, LOGITS), 2, "model.output is 2; it must be one of the tensors 0, 1; set model.output=0"),
        ((LOGITS, LOGITS), True, "model.output is True; it must be one of the tensors 0, 1"),
        ({"logits": LOGITS}, "logit", "one of the tensors logits .did you mean 'logits'.*; set model.output=logits"),
        (Output(None, LOGITS), "loss", "returns Output, and model.output is 'loss'; it must be one of the tensors"),
        ({"logits": LOGITS}, ["logits"], r"model.output is \['logits'\]; it must be"),
        (3, "logits", "the network returns int without a tensor; it must return logits"),
        ((), None, "the network returns tuple without a tensor"),
    ],
)
def test_an_output_that_is_not_there(result: Any, output: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        select_output(result, output)
