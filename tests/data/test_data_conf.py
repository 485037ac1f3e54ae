"""Every file of conf/data builds its data set."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import get_object
from omegaconf import OmegaConf

from nsr.data import image_data, npz
from nsr.errors import check_epsilon

FILES = sorted((Path(__file__).parents[2] / "conf" / "data").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_conf(file, tmp_path):
    assert file.read_text().startswith("# ")
    whole = OmegaConf.create({"seed": 3, "data": OmegaConf.load(file)})
    if file.stem == "image_folder":
        whole.data.root = str(tmp_path)
    settings = OmegaConf.to_container(whole, resolve=True)["data"]
    epsilon = settings.pop("epsilon")
    target = settings.pop("_target_")
    settings.pop("class_order", None)  # set after the data set is made
    data = image_data(npz if file.stem == "custom" else get_object(target), settings)
    assert data.seed == 3
    assert {norm: check_epsilon(norm, value, norm=norm, pixels=100) for norm, value in epsilon.items()}.keys() == {
        "linf",
        "l2",
        "l1",
    }
    assert torch.is_tensor(data.augment(torch.rand(2, 3, 8, 8))) if data.augment else True


def test_there_is_one_for_each():
    assert [file.stem for file in FILES] == ["cifar10", "custom", "digits", "fashion_mnist", "image_folder"]
