"""Weight files in the wrappers that projects put around them: loaded exactly, or one line that says what to give."""

from collections import OrderedDict
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from reference import fit
from torch import nn
from torch.nn.parallel import DataParallel

from nsr.app.network import load_network
from nsr.errors import InputError
from nsr.layers import find_layers
from nsr.models import Classifier
from nsr.models.weights import load_state_dict_file, read_checkpoint
from nsr.training.module import RobustClassifier


def make_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), fc=nn.Linear(4, 2)))


def prefixed(prefix, state):
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


class Project(pl.LightningModule):
    """Another project's module: its network, and a metric with a tensor."""

    def __init__(self):
        super().__init__()
        self.backbone, self.criterion = make_net(1), nn.CrossEntropyLoss(weight=torch.ones(2))


def lightning(tmp_path):
    project = Project()
    trainer = pl.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False, max_epochs=0)
    trainer.strategy.connect(project)
    trainer.save_checkpoint(tmp_path / "file")


def safetensors(tmp_path):
    from safetensors.torch import save_file

    save_file(STATE, tmp_path / "file")


STATE = make_net(1).state_dict()
OTHER = make_net(2).state_dict()
MU, SIGMA = torch.tensor([0.5, 0.25, 0.75]).view(1, 3, 1, 1), torch.tensor([0.25, 0.5, 0.125]).view(1, 3, 1, 1)
FILES = {
    **{
        f"prefix {prefix}": prefixed(prefix, STATE)
        for prefix in ("module.", "_orig_mod.", "model.", "net.", "backbone.")
    },
    **{
        f"key {key}": {key: STATE, "acc": 93.1}
        for key in ("state_dict", "model", "net", "model_state_dict", "ema", "x")
    },
    "data parallel": DataParallel(make_net(1)).state_dict(),
    "compiled": torch.compile(make_net(1), backend="eager").state_dict(),
    "compiled inside": {key.replace("conv.", "conv._orig_mod."): tensor for key, tensor in STATE.items()},
    "nested": {"state": {"ema": prefixed("module.model.", STATE)}, "optimizer": {"state": {0: {"step": MU}}}},
    "same twice": {"model": STATE, "ema": dict(STATE), "epoch": 3},
    "attacker": {"model": prefixed("module.model.", STATE) | prefixed("module.attacker.model.", STATE)},
    "mu and sigma": STATE | {"mu": MU, "sigma": SIGMA},
    "behind a normalization": {"0.mean": MU, "0.std": SIGMA} | prefixed("1.", STATE),
    "lightning": lightning,
    "safetensors": safetensors,
}


@pytest.mark.parametrize("name", FILES)
def test_loads_the_weights_in_a_wrapper(name, tmp_path, caplog):
    content = FILES[name]
    content(tmp_path) if callable(content) else torch.save(content, tmp_path / "file")
    net = make_net()
    load_state_dict_file(net, tmp_path / "file")
    assert all(torch.equal(tensor, STATE[key]) for key, tensor in net.state_dict().items())
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert ["model.normalization='{mean: [0.5,0.25,0.75], std: [0.25,0.5,0.125]}'" in line for line in warned] == [
        True
    ] * (name in ("mu and sigma", "behind a normalization"))


SEVERAL = {"model": STATE, "model_ema": prefixed("module.", OTHER), "epoch": 3}


@pytest.mark.parametrize("prefix", ["model_ema.module", "model_ema.module."])
def test_several_weights_need_a_prefix(prefix, tmp_path):
    torch.save(SEVERAL, tmp_path / "file")
    net = make_net()
    with pytest.raises(InputError) as caught:
        load_state_dict_file(net, tmp_path / "file")
    assert str(caught.value) == (
        f"{str(tmp_path / 'file')!r} holds different weights that fit, under 'model.', 'model_ema.module.'; "
        "choose with model.weights_prefix=model_ema.module"
    )
    load_state_dict_file(net, tmp_path / "file", prefix=prefix)
    assert all(torch.equal(tensor, OTHER[key]) for key, tensor in net.state_dict().items())
    with pytest.raises(InputError, match=r"holds no weights under 'ema\.'; its tensors are under 'model.conv', 'model"):
        load_state_dict_file(net, tmp_path / "file", prefix="ema")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"net": prefixed("module.", {key: STATE[key] for key in list(STATE)[:4]})},
            "under 'net.module.', does not fit",
        ),
        ({"a": {"b": {"c": {"d": {"e": {"f": STATE}}}}}}, "holds no state_dict"),
        (prefixed("encoder_", STATE), "does not fit Sequential: it lacks 'conv.weight'"),
        (STATE | {"mu": MU, "sigma": -SIGMA}, "it has unknown 'mu', 'sigma'"),
        (
            {"ema": STATE | {"fc.weight": torch.ones(3, 4)}},
            "under 'ema.', does not fit Sequential: fc.weight must have",
        ),
    ],
)
def test_what_fits_nowhere_is_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "file")
    net = make_net()
    with pytest.raises(InputError, match=message):
        load_state_dict_file(net, tmp_path / "file")
    assert all(torch.equal(tensor, make_net().state_dict()[key]) for key, tensor in net.state_dict().items())


def test_a_file_of_one_mapping_named_very_often_is_read_at_once(tmp_path):
    content = STATE
    for _ in range(4):
        content = dict.fromkeys(map(str, range(1000)), content)
    torch.save(content, tmp_path / "file")
    load_state_dict_file(make_net(), tmp_path / "file")


def test_a_truncated_file_of_safetensors(tmp_path):
    safetensors(tmp_path)
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:-5])
    with pytest.raises(InputError, match="is cut short or no checkpoint that safetensors wrote"):
        load_state_dict_file(make_net(), tmp_path / "file")


class Versioned(nn.Module):
    """Since version 2 the scale is stored as it is, before as its half; without a version it refuses, as MNASNet."""

    _version = 2

    def __init__(self):
        super().__init__()
        self.scale, self.fc = nn.Parameter(torch.rand(1)), nn.Linear(4, 2)

    def forward(self, images):
        return self.scale * self.fc(images.flatten(1))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        if local_metadata.get("version") not in (1, 2):
            raise ValueError(f"version is {local_metadata.get('version')}")
        if local_metadata["version"] == 1:
            state_dict[f"{prefix}scale"] = 2 * state_dict[f"{prefix}scale"]
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


@pytest.mark.parametrize("version", [1, 2, None])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_versions_of_modules_are_kept(version, prefix, tmp_path):
    """None, as in safetensors: the present version."""
    net = Versioned()
    state = net.state_dict(prefix=prefix)
    if version is None:
        state = dict(state)
    else:
        state._metadata[prefix.removesuffix(".")]["version"] = version
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "file")
    loaded = Versioned()
    load_state_dict_file(loaded, tmp_path / "file")
    assert loaded.scale.item() == net.scale.item() * (2 if version == 1 else 1)
    state = loaded.state_dict()
    state._metadata[""]["version"] = 7
    torch.save(state, tmp_path / "file")
    with pytest.raises(InputError, match=r"cannot be loaded into Versioned: version is 7$"):
        load_state_dict_file(loaded, tmp_path / "file")


@pytest.mark.parametrize("averaged", [False, True])
def test_a_run_keeps_the_versions_of_modules(averaged, tmp_path):
    images, labels = torch.rand(8, 1, 2, 2), torch.arange(8) % 2
    net = Classifier(Versioned())
    layers = find_layers(net, images[:2], ["net.fc"])
    module = RobustClassifier(net, layers=layers, classes=2, optimizer=partial(torch.optim.SGD, lr=0.1))
    average = [EMAWeightAveraging(decay=0.5)] if averaged else []
    trainer = fit(module, [(images, labels)] * 2, callbacks=average)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = read_checkpoint(tmp_path / "last.ckpt")
    loaded = Classifier(Versioned())
    load_network(loaded, saved, "last.ckpt")
    assert loaded.net.scale.item() == saved["state_dict"]["net.net.scale"].item()
    load_state_dict_file(loaded.net, tmp_path / "last.ckpt")
    average = [EMAWeightAveraging(decay=0.5)] if averaged else []
    fit(module, [(images, labels)] * 2, epochs=2, callbacks=average, resumed=tmp_path / "last.ckpt")
