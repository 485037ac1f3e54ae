"""Every file of conf/model: explained in its first line, complete, and it builds the network it names."""

from pathlib import Path

import pytest
import torch

from nsr import models

hydra_utils = pytest.importorskip("hydra.utils")
OmegaConf = pytest.importorskip("omegaconf").OmegaConf

FOLDER = Path(__file__).parents[2] / "conf" / "model"
DATA = {"channels": 3, "classes": 7, "image_size": 32}
NAMED = {"torchvision": "resnet18", "timm": "test_vit"}  # a network of each library
TAKEN_OUT_BY_THE_ASSEMBLY = {"normalization": "data", "weights": None}


def test_every_network_has_its_file() -> None:
    targets = {OmegaConf.load(path)["_target_"] for path in FOLDER.glob("*.yaml")}
    assert targets == {f"nsr.models.{name}" for name in models.__all__ if name not in ("Classifier", "Normalize")}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_file_builds_its_network(path: Path) -> None:
    assert path.read_text().startswith("# ")
    config = OmegaConf.create({"data": DATA, "model": OmegaConf.load(path)})
    if path.stem in NAMED:
        config.model.name = NAMED[path.stem]
    settings = OmegaConf.to_container(config.model, resolve=True)
    for name, default in TAKEN_OUT_BY_THE_ASSEMBLY.items():
        assert settings.pop(name) == default
    net = hydra_utils.instantiate(settings)
    if path.stem in NAMED:
        assert type(net).__module__.partition(".")[0] == path.stem
    else:
        assert type(net).__name__.lower() == path.stem.replace("_", "")
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 7)
