"""torchvision's and timm's networks by name: the library's own, without weights from elsewhere, refused in a line."""

from __future__ import annotations

import builtins
import inspect
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from nsr.errors import InputError
from nsr.models import timm_model, torchvision_model
from nsr.models.build import torchvision_classifiers
from nsr.models.weights import load_state_dict_file

SIZES = {"channels": 3, "classes": 4, "image_size": 32}
KINDS = [  # one of each family that is built in another way
    (torchvision_model, "resnet18", 32),
    (torchvision_model, "mobilenet_v3_small", 8),
    (torchvision_model, "shufflenet_v2_x0_5", 16),
    (torchvision_model, "squeezenet1_1", 32),
    (torchvision_model, "inception_v3", 75),
    (timm_model, "test_resnet", 8),
    (timm_model, "test_vit", 32),
]
named = pytest.mark.parametrize(("build", "name", "image_size"), KINDS, ids=[name for _, name, _ in KINDS])


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Fail wherever torchvision and timm would fetch weights."""

    def fail(*arguments, **settings):
        raise AssertionError("weights were asked for")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fail)
    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", fail)
    monkeypatch.setattr("timm.models._builder.load_pretrained", fail)
    monkeypatch.setattr("timm.models._hub.load_model_config_from_hf", fail)
    monkeypatch.setattr("urllib.request.urlopen", fail)


def refusal(build, **settings) -> str:
    with pytest.raises(InputError) as caught:
        build(**{**SIZES, **settings})
    return str(caught.value)


@named
def test_logits_in_both_modes_and_gradients(build, name, image_size):
    torch.manual_seed(0)
    net = build(name=name, channels=3, classes=4, image_size=image_size)
    images = torch.rand(2, 3, image_size, image_size)
    assert net.eval()(images).shape == (2, 4)
    logits = net.train()(images)
    assert logits.shape == (2, 4)
    logits.square().sum().backward()
    assert [key for key, parameter in net.named_parameters() if parameter.grad is None] == []


def test_it_is_the_librarys_own_network():
    import timm

    with torch.device("meta"):  # shapes alone
        pairs = (
            (torchvision_model(name="resnet18", **SIZES), torchvision.models.resnet18(num_classes=4)),
            (torchvision_model(name="vit_b_32", **SIZES), torchvision.models.vit_b_32(num_classes=4, image_size=32)),
            (timm_model(name="test_vit", **SIZES), timm.create_model("test_vit", num_classes=4, img_size=32)),
        )
    for ours, theirs in pairs:
        assert type(ours) is type(theirs)
        shapes = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
        assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == shapes


def test_every_builder_of_torchvision_names_its_class():
    """The class of the return type shows whether it takes an image size."""
    names = torchvision_classifiers()
    assert len(names) > 70 and {"resnet18", "vit_b_16", "swin_t"} <= set(names)
    assert not [name for name in names if "rcnn" in name or "_3d" in name or "raft" in name or "fcn" in name]
    for name in names:
        returned = inspect.signature(torchvision.models.get_model_builder(name)).return_annotation
        assert inspect.isclass(returned) and issubclass(returned, nn.Module)


@pytest.mark.parametrize("name", [pytest.param("inception_v3", marks=pytest.mark.slow), "googlenet"])
def test_published_weights_with_auxiliary_heads(name, tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None, num_classes=4, init_weights=True).eval()
    state = theirs.state_dict()
    assert any(key.startswith(("AuxLogits", "aux1")) for key in state)
    torch.save(state, tmp_path / "weights.pt")
    net = torchvision_model(name=name, channels=3, classes=4, image_size=96).eval()
    load_state_dict_file(net, tmp_path / "weights.pt")
    images = torch.rand(2, 3, 96, 96)
    assert torch.equal(net(images), theirs(images))
    torch.save({**state, "auxiliary.weight": torch.ones(1)}, tmp_path / "more.pt")
    with pytest.raises(InputError, match=r"has unknown 'auxiliary.weight'"):
        load_state_dict_file(net, tmp_path / "more.pt")


@pytest.mark.parametrize(
    ("build", "name", "message"),
    [
        (torchvision_model, "resnet19", "torchvision has no image classifier of that name (did you mean 'resnet1"),
        (torchvision_model, "fasterrcnn_resnet50_fpn", "no image classifier"),
        (torchvision_model, "get_weight", "no image classifier"),
        (torchvision_model, None, "model.name is None"),
        (torchvision_model, ["resnet18"], "model.name is ['resnet18']"),
        (torchvision_model, "github:evil/resnet18", "looks in a hub or a folder: refused"),
        (timm_model, "resnet19", "timm has no image classifier of that name (did you mean '"),
        (timm_model, "resnet18.a1_in1k", "did you mean 'resnet18'?"),
        (timm_model, "hf-hub:timm/resnet18.a1_in1k", "looks in a hub or a folder: refused"),
        (timm_model, "local-dir:resnet18", "looks in a hub or a folder: refused"),
        (timm_model, "resnet18\n", "no image classifier"),
    ],
)
def test_names(build, name, message):
    assert message in refusal(build, name=name)


@pytest.mark.parametrize(
    ("build", "name", "image_size", "message"),
    [
        (torchvision_model, "vit_b_16", 8, "torchvision's vit_b_16 cannot be built for images of 3 x 8 x 8: Input"),
        (torchvision_model, "maxvit_t", 32, "maxvit_t cannot be built for images of 3 x 32 x 32: Input size (8, 8)"),
        (timm_model, "test_vit", 0, "image_size is 0; it must be a whole number at least 1"),
    ],
)
def test_sizes_that_cannot_be_built(build, name, image_size, message):
    assert message in refusal(build, name=name, image_size=image_size)


def test_timm_is_an_extra(monkeypatch):
    original = builtins.__import__

    def without_timm(name, *arguments, **settings):
        if name.partition(".")[0] == "timm":
            raise ImportError(name)
        return original(name, *arguments, **settings)

    monkeypatch.setattr(builtins, "__import__", without_timm)
    assert refusal(timm_model, name="resnet18") == "model=timm needs the package timm: pip install timm"
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert "\nmodels = [" in text
