"""A new head on pretrained weights: every other tensor is loaded bit-equal; the nearest networks where nothing fits."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nsr.app.network import build_classifier, nearest_networks
from nsr.app.train import train
from nsr.callbacks import Freeze
from nsr.data import DataDescription
from nsr.errors import InputError
from nsr.models import Classifier, PreActResNet, ResNet20, SmallCNN, WideResNet, timm_model, torchvision_model
from nsr.models.weights import OtherNetwork, load_state_dict_file
from tests.conftest import REPEATED, TINY, assert_repeats, evaluated, image_folder, job, made

SIZES = {"channels": 3, "image_size": 32}
DESCRIPTION = DataDescription(3, 32, 5, (0.5,) * 3, (0.25,) * 3, tuple("abcde"))
NETWORKS = {
    "SmallCNN": (SmallCNN, {}, ["fc2"]),
    "WideResNet": (WideResNet, {"depth": 10, "width": 1}, ["fc"]),
    "deepmind": (WideResNet, {"depth": 10, "width": 1, "variant": "deepmind"}, ["logits"]),
    "squeezenet": (torchvision_model, {"name": "squeezenet1_1"}, ["classifier.1"]),
    "timm": (timm_model, {"name": "test_vit", "img_size": 32}, ["head"]),
    "two heads": (torchvision_model, {"name": "googlenet", "aux_logits": True}, ["fc", "aux1.fc2", "aux2.fc2"]),
}
SLOW = ("squeezenet", "timm", "two heads")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in NETWORKS]
)
@pytest.mark.parametrize("classes", [5, 10])
def test_every_tensor_but_the_head_s_is_loaded(
    name: str, classes: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make, settings, heads = NETWORKS[name]
    state = make(**SIZES, classes=10, **settings).state_dict()
    torch.save({"model": {f"module.{key}": tensor for key, tensor in state.items()}}, tmp_path / "weights.pt")
    net = make(**SIZES, classes=classes, **settings)
    before = copy.deepcopy(net.state_dict())
    if classes == 5:
        with pytest.raises(OtherNetwork, match="must have shape .* another model, variant, or number of classes"):
            load_state_dict_file(net, tmp_path / "weights.pt")
    else:
        heads = heads[:1] if name != "two heads" else ["fc"]  # alike: the last layer alone
    caplog.set_level(logging.INFO)
    load_state_dict_file(net, tmp_path / "weights.pt", new_head=classes)
    assert f"initialized at random for {classes} classes, every other tensor is loaded" in caplog.text
    for key, tensor in net.state_dict().items():
        is_head = key.rpartition(".")[0] in heads
        assert torch.equal(tensor, before[key] if is_head else state[key]), key
    assert all(head in caplog.text for head in heads)


HEADS = {  # all that depends on the number of classes, of networks with more than one classifier
    "inception_v3": (torchvision_model, {"name": "inception_v3", "aux_logits": True, "init_weights": False}),
    "googlenet": (torchvision_model, {"name": "googlenet", "aux_logits": True, "init_weights": False}),
    "distilled": (timm_model, {"name": "deit_tiny_distilled_patch16_224", "depth": 1}),
}
TENSORS = {
    "inception_v3": {"AuxLogits.fc.weight", "AuxLogits.fc.bias", "fc.weight", "fc.bias"},
    "googlenet": {"aux1.fc2.weight", "aux1.fc2.bias", "aux2.fc2.weight", "aux2.fc2.bias", "fc.weight", "fc.bias"},
    "distilled": {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("classes", [5, 10])
def test_every_head_is_new(name: str, classes: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also where the file has as many classes, which shapes do not show."""
    factory, settings = HEADS[name]
    state = factory(channels=3, classes=10, image_size=32, **settings).state_dict()
    state = {key: torch.rand_like(each) if each.is_floating_point() else each for key, each in state.items()}
    torch.save(state, tmp_path / "published.pt")
    description = DataDescription(3, 32, classes, (0.5,) * 3, (0.25,) * 3, tuple("abcdefghij"[:classes]))
    own = {"_target_": f"nsr.models.{factory.__name__}", **settings, "weights": str(tmp_path / "published.pt")}
    own |= {"output": "logits"} if factory is torchvision_model else {}
    caplog.set_level(logging.INFO)
    generator = torch.get_rng_state()
    net = build_classifier({"model": own | {"new_head": True, "normalization": "none"}}, description).net
    after, found = torch.get_rng_state(), net.state_dict()
    differing = {key for key, tensor in found.items() if not torch.equal(tensor, state[key])}
    assert differing == TENSORS[name]
    heads = dict.fromkeys(key.rpartition(".")[0] for key in found if key in TENSORS[name])
    assert f"{' and '.join(heads)} are initialized at random for {classes} classes" in caplog.text
    torch.set_rng_state(generator)
    factory(channels=3, classes=classes, image_size=32, **settings)
    assert torch.equal(torch.get_rng_state(), after)  # the second network, of another number, draws nothing


def test_a_layer_with_an_output_per_class_that_is_no_head_is_loaded(tmp_path: Path) -> None:
    state = SmallCNN(**SIZES, classes=5, width=5).state_dict()  # conv1 has five outputs too
    torch.save(state, tmp_path / "weights.pt")
    own = {"_target_": "nsr.models.SmallCNN", "width": 5, "normalization": "data", "new_head": True}
    own["weights"] = str(tmp_path / "weights.pt")
    found = build_classifier({"model": own}, DESCRIPTION).net.state_dict()
    assert {key for key in state if not torch.equal(found[key], state[key])} == {"fc2.weight", "fc2.bias"}


def test_more_than_another_head_is_refused(tmp_path: Path) -> None:
    torch.save(SmallCNN(**SIZES, classes=10, width=4).state_dict(), tmp_path / "weights.pt")
    net = SmallCNN(**SIZES, classes=5, width=8)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(OtherNetwork, match="does not fit SmallCNN: conv1.weight must have shape"):
        load_state_dict_file(net, tmp_path / "weights.pt", new_head=5)
    with pytest.raises(InputError, match="^SmallCNN has no layer with 7 outputs; model.new_head=true needs a last"):
        load_state_dict_file(net, tmp_path / "weights.pt", new_head=7)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


def test_a_file_without_a_head(tmp_path: Path) -> None:
    state = ResNet20(**SIZES, classes=10).state_dict()
    torch.save({key: tensor for key, tensor in state.items() if not key.startswith("fc.")}, tmp_path / "weights.pt")
    net = ResNet20(**SIZES, classes=5)
    load_state_dict_file(net, tmp_path / "weights.pt", new_head=5)
    assert all(torch.equal(tensor, state[key]) for key, tensor in net.state_dict().items() if not key.startswith("fc."))


def test_the_settings() -> None:
    own = {"_target_": "nsr.models.SmallCNN", "width": 4, "new_head": True}
    with pytest.raises(InputError, match=r"^model.new_head is true without model.weights; it keeps all but"):
        build_classifier({"model": own}, DESCRIPTION)
    with pytest.raises(InputError, match="^model.new_head is true: the head would be random"):
        made("evaluate", "model=small_cnn", "model.weights=file.pt", "model.new_head=true", "data=digits")


def test_parts_that_cannot_be_frozen() -> None:
    for parts, message in (
        ("conv1", "callbacks.freeze.parts is 'conv1'; it must be a list of modules, such as"),
        ([], r"callbacks.freeze.parts is \[\]; it must be a list"),
        (
            ["conv9"],
            r"no module matches 'conv9' \(did you mean 'conv.'\?\); there are conv1, bn1, relu1, pool1, \.\.\.",
        ),
        (["*"], r"callbacks.freeze.parts is \['\*'\], the whole network; leave a part to train"),
    ):
        module = nn.ModuleDict({"net": Classifier(SmallCNN(**SIZES, classes=5, width=2))})
        with pytest.raises(InputError, match=message):
            Freeze(parts=parts).check(SimpleNamespace(net=module["net"], parameters=module.parameters), 1)


@pytest.mark.slow
def test_a_run_is_tuned_to_other_classes_and_evaluated(trained: Path, tmp_path: Path) -> None:
    image_folder(tmp_path / "images", classes=("cat", "dog", "cow"), images=8)
    data = (f"data.root={tmp_path / 'images'}", "data.channels=1", "data.image_size=8", "data.validation_images=6")
    weights = (f"model.weights={trained / 'checkpoints' / 'best.ckpt'}", "model.new_head=true")
    frozen = ("callbacks=[freeze]", "callbacks.freeze.parts=[conv1,'bn*']", "stabilizer=none")
    train(job("train", tmp_path / "run", *TINY, "data=image_folder", "data.batch_size=6", *data, *weights, *frozen))
    before, after = (
        torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
        for run in (trained, tmp_path / "run")
    )
    for key in (key for key in before if key.startswith("net.net.") and ".fc2." not in key):
        is_frozen = key.split(".")[2].startswith(("conv1", "bn"))
        assert torch.equal(before[key], after[key]) is is_frozen, key
    evaluated(tmp_path / "evaluation", f"checkpoint={tmp_path / 'run' / 'checkpoints' / 'best.ckpt'}", *REPEATED)
    assert_repeats(tmp_path / "run", tmp_path / "evaluation")


@pytest.mark.slow
def test_another_network_s_weights_name_the_nearest_ones(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    for net, nearest in (
        (PreActResNet(**SIZES, classes=10), r"preactresnet18 \(9\d %\), resnet18"),
        (WideResNet(**SIZES, classes=5, depth=28, width=2, variant="deepmind"), r"wrn_28_10_deepmind \(\d\d %\), wrn_"),
        (nn.Linear(2, 3), r"\w+ \(0 %\)"),
    ):
        torch.save({"state_dict": {f"module.{key}": each for key, each in net.state_dict().items()}}, file)
        own = {"_target_": "nsr.models.ResNet18", "weights": str(file), "normalization": "none"}
        with pytest.raises(InputError, match=f"does not fit ResNet18: .* most similar by names and shapes: {nearest}"):
            build_classifier({"model": own}, DESCRIPTION)
    torch.save(PreActResNet(**SIZES, classes=5).state_dict(), file)
    assert "shapes: preactresnet18 (100 %), " in nearest_networks(file, DESCRIPTION)
