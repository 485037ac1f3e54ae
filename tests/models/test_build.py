"""Networks by any constructor: the arguments that it names, all normalized, and one line for each fault."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from nsr import models
from nsr.errors import InputError
from nsr.models import Classifier, ResNet20, SmallCNN, build_network, timm_model, torchvision_model

FOLDER = Path(__file__).parents[2] / "conf" / "model"
FACTS = {"channels": 3, "classes": 7, "image_size": 32}


class Linear(nn.Module):
    def __init__(self, inputs, classes):
        super().__init__()
        self.fc = nn.Linear(inputs, classes)

    def forward(self, images):
        return self.fc(images.flatten(1))


def strict(channels, classes, image_size):
    return Linear(channels * image_size**2, classes)


def only_classes(num_classes, norm="batch", width=1, mode="fast", loss=None):
    assert (norm, width, mode, loss) == ("layer", 3, "slow", 4)
    return Linear(3 * 32**2, num_classes)


def synonyms(in_chans, img_size, n_classes=2):
    return Linear(in_chans * img_size**2, n_classes)


def keywords(**settings):
    assert settings in ({}, {"depth": 3})
    return Linear(3 * 32**2, 7)


def positional(in_channels, /, num_classes=7):
    return Linear(in_channels, num_classes)


OWN = {"norm": "layer", "width": 3, "mode": "slow", "loss": 4}


@pytest.mark.parametrize(
    ("factory", "settings", "logits"),
    [
        (strict, {}, 7),
        (strict, {"classes": 5}, 5),  # what the user sets is kept
        (only_classes, OWN, 7),
        (only_classes, {**OWN, "num_classes": 4}, 4),
        (synonyms, {}, 7),
        (keywords, {}, 7),
        (keywords, {"depth": 3}, 7),
        (functools.partial(strict, classes=3), {}, 7),
        (SmallCNN, {"width": 4}, 7),
        (ResNet20, {"variant": "projection_bias"}, 7),
    ],
)
def test_a_constructor_gets_what_it_names_and_is_normalized(factory, settings, logits):
    net = build_network(factory, settings, **FACTS)
    classifier = Classifier(net, [0.5] * 3, [0.25] * 3)
    images = torch.rand(2, 3, 32, 32)
    assert classifier(images).shape == (2, logits)
    assert torch.equal(classifier.eval()(images), net.eval()((images - 0.5) / 0.25))
    classifier(images).sum().backward()


def test_building_draws_what_the_constructor_draws():
    nets = []
    for build in (lambda: build_network(SmallCNN, {"width": 4}, **FACTS), lambda: SmallCNN(width=4, **FACTS)):
        torch.manual_seed(0)
        nets.append((build(), torch.rand(1)))
    assert torch.equal(nets[0][0].fc1.weight, nets[1][0].fc1.weight) and nets[0][1] == nets[1][1]


def broken():
    raise RuntimeError("no\nluck")


@pytest.mark.parametrize(
    ("factory", "settings", "message"),
    [
        (SmallCNN, {"widht": 3}, r"model.widht is not an argument of .*SmallCNN \(did you mean 'width'\?\); it takes"),
        (broken, {"depth": 3}, "model.depth is not an argument of .*broken; it takes none"),
        (lambda depth, classes: None, {}, "needs the argument depth; set model.depth"),
        (positional, {}, "positional failed: TypeError"),
        (broken, {}, "broken failed: RuntimeError: no luck$"),
        (SmallCNN, {"width": 0}, "width is 0; it must be a whole number"),
        (lambda: 3, {}, "returns int; it must be a torch.nn.Module"),
        (lambda: SmallCNN, {}, "returns type; it must be a torch.nn.Module"),
        (SmallCNN, {"width": 10**5}, "the network takes 720 GB; it must fit in the .* GB of this machine's memory;"),
        (SmallCNN, {"width": 10**12}, "the network takes .* GB; it must fit"),
        (SmallCNN, {"image_size": 200_000}, "the network takes .* GB; it must fit"),
    ],
)
def test_one_line_for_each_fault(factory, settings, message):
    with pytest.raises(InputError, match=message):
        build_network(factory, settings, **FACTS)


def test_every_network_has_its_file():
    files = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in FOLDER.glob("*.yaml")}
    targets = {settings["_target_"] for name, settings in files.items() if name != "custom"}
    assert targets == {f"nsr.models.{name}" for name in models.__all__ if name not in ("Classifier", "Normalize")}
    for file, settings in files.items():
        names = ("normalization", "output", "weights", "weights_prefix", "new_head")
        output = "logits" if file == "inception_v3" else None  # beside those of its auxiliary head
        assert [settings[name] for name in names] == [None, output, None, None, False]


def test_arguments_are_passed_on_to_the_library():
    net = build_network(torchvision_model, {"name": "resnet50", "width_per_group": 32}, **FACTS)
    assert net.base_width == 32
    assert build_network(timm_model, {"name": "test_resnet", "drop_rate": 0.25}, **FACTS).drop_rate == 0.25
    for build, settings, message in (
        (torchvision_model, {"aux_logit": True}, "model.aux_logit is not an argument of torchvision's inception_v3"),
        (torchvision_model, {"weights": "DEFAULT"}, "model.weights is not an argument"),
        (timm_model, {"pretrained": True}, "model.pretrained is refused: weights come from a file; set model.weights"),
        (timm_model, {"pretrained_cfg": {}}, "model.pretrained_cfg is refused"),
        (timm_model, {"checkpoint_path": "a.pt"}, "model.checkpoint_path is refused"),
        (torchvision_model, {"channels": 1}, "takes images of 3 channels, but data.channels is 1; model=timm and"),
        (timm_model, {"drop_rat": 1}, "unexpected keyword argument 'drop_rat'"),
    ):
        name = "inception_v3" if build is torchvision_model else "test_resnet"
        with pytest.raises(InputError, match=message):
            build_network(build, {"name": name, **settings}, **FACTS)


@pytest.mark.slow
def test_inception_v3_trains_with_its_auxiliary_head():
    """Its auxiliary head needs maps of 17 x 17, which only images of 299 pixels and more have."""
    settings = {"name": "inception_v3", "aux_logits": True, "init_weights": False}
    net = build_network(torchvision_model, settings, channels=3, classes=4, image_size=299)
    classifier = Classifier(net, [0.5] * 3, [0.5] * 3, output="logits")
    images = torch.rand(2, 3, 299, 299)
    logits = classifier(images)
    logits.square().sum().backward()
    assert logits.shape == (2, 4) and net.fc.weight.grad is not None and net.Conv2d_1a_3x3.conv.weight.grad is not None
    assert classifier.eval()(images).shape == (2, 4)  # a tensor in eval mode
    with pytest.raises(InputError, match="returns InceptionOutputs, and model.output is None; .* model.output=logits"):
        Classifier(net.train())(images)
