"""Normalization of weights: asked for, typed, or what torchvision and timm publish."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nsr.errors import InputError
from nsr.models import Classifier, ResNet20, torchvision_model
from nsr.models.normalization import find_normalization, torchvision_constants, torchvision_name

DATA = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def found(choice, net=None, name=None, run=None, *, data=DATA, file="w.pt"):
    return find_normalization(choice, net or nn.Identity(), name, run, data=data, file=file)


def test_a_fresh_network_gets_the_constants_of_the_data():
    assert found(None, file=None) == ("data", DATA, None) == found("data", file=None)
    assert found("data").constants == DATA and found("none").constants == ()


def test_typed_constants_are_used_and_recorded():
    typed = {"mean": [0.5] * 3, "std": [0.25] * 3}
    assert found(typed)[:2] == (typed, ([0.5] * 3, [0.25] * 3))
    assert found("imagenet")[:2] == ({"mean": list(IMAGENET[0]), "std": list(IMAGENET[1])}, IMAGENET)


@pytest.mark.parametrize(
    ("choice", "settings", "message"),
    [
        (None, {}, "of model.weights=w.pt is not known: Identity has no default_cfg .* give model.normalization: data"),
        ("timm", {"file": None}, "timm's constants is not known"),
        ("imagnet", {}, "model.normalization is 'imagnet'; it must be one of .*imagenet"),
        (3, {}, "model.normalization is 3"),
        ({"mean": [0.5]}, {}, "model.normalization has mean; it must be data"),
        (None, {"name": "resnet18", "data": ((0.1,), (0.2,))}, "published for 3 channels, but the images have 1"),
        ("imagenet", {"data": ((0.1,), (0.2,))}, "published for 3 channels, but the images have 1"),
    ],
)
def test_what_is_not_known_is_asked_for_in_a_line(choice, settings, message):
    with pytest.raises(InputError, match=message) as refused:
        found(choice, **settings)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet18", IMAGENET), ("vit_h_14", IMAGENET), ("efficientnet_v2_l", ((0.5,) * 3,) * 2)],
)
def test_torchvision_publishes_its_own(name, expected):
    result = found(None, name=name)
    assert result.constants == expected and "published mean (0." in result.note
    assert result.record == {"mean": list(expected[0]), "std": list(expected[1])}


def test_every_classifier_of_torchvision_has_constants():
    from torchvision import models

    for name in models.list_models(module=models):
        assert torchvision_constants(name, nn.Identity()) is not None, name


def test_networks_that_take_pixels_from_minus_one_to_one():
    """Inception's weights on normalized images: its builder sets transform_input, which gives these very pixels."""

    class Inception(nn.Module):
        transform_input = False

    assert torchvision_constants("inception_v3", Inception()) == ((0.5,) * 3,) * 2
    theirs = Inception()
    theirs.transform_input = True
    assert torchvision_constants("inception_v3", theirs) == IMAGENET


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_timm_publishes_its_own(name):
    timm = pytest.importorskip("timm")
    net, expected = timm.create_model(name), timm.get_pretrained_cfg(name)
    for choice in (None, "timm"):
        assert found(choice, net).constants == (expected.mean, expected.std)
    assert "other weights" not in found(None, net).note


def test_weights_of_one_name_with_other_constants_are_mentioned():
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        net = timm.create_model("resnet34")  # ra4_e3600_r224_in1k's weights were trained with 0.5
    result = found(None, net)
    assert result.constants == IMAGENET and "other weights of this name have mean (0.5, 0.5, 0.5)" in result.note


def test_names_of_torchvision():
    import torchvision

    assert torchvision_name(torchvision_model, {"name": "resnet50"}) == "resnet50"
    assert torchvision_name(torchvision.models.resnet18, {}) == "resnet18"
    assert torchvision_name(torchvision.models.ResNet, {}) is None and torchvision_name(ResNet20, {}) is None


@pytest.mark.parametrize("constants", [((0.25, 0.5), (0.125, 1.0)), ()])
def test_a_checkpoint_of_a_run_brings_its_own(constants):
    state = {f"net.{key}": value for key, value in Classifier(nn.Linear(2, 2), *constants).state_dict().items()}
    result = found(None, run={"nsr_settings": {}, "state_dict": state}, data=((0.1, 0.1), (1.0, 1.0)))
    assert [list(values) for values in result.constants] == [list(values) for values in constants]
    assert Classifier(nn.Identity(), *result.constants)(torch.rand(1, 2, 3, 3)).shape == (1, 2, 3, 3)
