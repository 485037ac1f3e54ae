"""RobustBench's architectures: its names, shapes, parameter counts, and its logits for weights that a formula gives.

The names in robustbench_keys.txt and the logits below were computed with the classes of robustbench 1.1.1 (torch 2.14,
float64): facts, not code. robustbench pins another timm and cannot be installed beside nsr.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from zlib import crc32

import pytest
import torch
from torch import Tensor, nn

from nsr.layers import find_layers
from nsr.models import PreActResNet, ResNet18, ResNet34, ResNet50, WideResNet
from nsr.models.preactivation import PREACT, PreActivationNet
from nsr.models.resnet import Bottleneck, ResNet
from nsr.models.stored import renamed
from nsr.models.weights import load_state_dict_file

SMALL = {"channels": 3, "classes": 3}
WIDTHS = {"widths": (64, 64, 128, 256, 512), "blocks": (1, 1, 1, 1), "activation": "relu"}
BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
SILU = {"variant": "deepmind", "activation": "silu"}
WIDE = ((28, 10, 36.5), (34, 10, 46.2), (70, 16, 266.8))  # depth, width, millions of parameters as reported
FULL = {
    "Zhang2019Theoretically": partial(WideResNet, depth=34),
    "Rice2020Overfitting_L2": PreActResNet,
    "Wong2020Fast": partial(PreActResNet, variant="wong2020"),
    "Engstrom2019Robustness": ResNet50,
    "Wang2023Better_WRN-28-10": partial(WideResNet, **SILU),
    "Rade2021Helper_R18_ddpm": partial(PreActResNet, **SILU),
}


def published_shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for line in (Path(__file__).parent / "robustbench_keys.txt").read_text().splitlines()[1:]:
        name, *shape = line.split()
        if name == "#":
            shapes = found[shape[0].removesuffix(":")] = {}
        elif shape[0] == "bn":
            shapes |= {f"{name}.{part}": (int(shape[1]),) for part in BATCH_NORM} | {f"{name}.num_batches_tracked": ()}
        else:
            shapes[name] = tuple(map(int, shape[0].split("x")))
    return found


PUBLISHED = published_shapes()


@pytest.fixture
def without_values(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks of names and shapes alone; the first draw of a meta tensor would import for seconds."""
    monkeypatch.setattr(nn.init, "kaiming_normal_", lambda *_, **__: None)
    with torch.device("meta"):
        yield


@pytest.mark.parametrize("name", FULL)
@pytest.mark.usefixtures("without_values")
def test_every_published_name_is_ours_in_its_shape(name: str) -> None:
    net = FULL[name](channels=3, classes=10)
    stored = {key: torch.empty(shape) for key, shape in PUBLISHED[name].items()}
    stored = renamed(stored, getattr(net, "published_names", {}))
    # the normalization is no part of the network; no pass uses sub_block1
    stored = {key: tensor for key, tensor in stored.items() if not key.startswith(("mu", "sigma", "sub_block1."))}
    ours = {key: tensor.shape for key, tensor in net.state_dict().items()}
    assert ours == {key: tensor.shape for key, tensor in stored.items()}


@pytest.mark.usefixtures("without_values")
def test_parameter_counts_of_the_papers() -> None:
    for make, millions in (
        *((partial(WideResNet, depth=depth, width=width), count) for depth, width, count in WIDE),
        *((ResNet34, 21.28), (ResNet50, 23.52), (PreActResNet, 11.17)),
    ):
        count = sum(parameter.numel() for parameter in make(channels=3, classes=10).parameters())
        assert round(count / 1e6, 2) == pytest.approx(millions, abs=0.05 if millions > 30 else 0)


def filled(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Weights in float64 by a formula of the published name."""
    state = {}
    for key, shape in shapes.items():
        wave = torch.sin(torch.arange(shape.numel(), dtype=torch.float64) * 0.7 + crc32(key.encode()) % 1000).view(
            shape
        )
        if len(shape) > 1:
            state[key] = wave * (2 / shape[1:].numel()) ** 0.5
        else:
            state[key] = 1 + wave / 2 if key.endswith(("running_var", "weight")) else wave / 10
    return {key: torch.tensor(0) if key.endswith("num_batches_tracked") else tensor for key, tensor in state.items()}


@pytest.mark.parametrize(
    ("make", "logits"),
    [
        (partial(WideResNet, depth=10, width=1), "13.595609 19.384856 12.926516 13.501073 19.337604 12.95642"),
        (
            partial(WideResNet, depth=10, width=1, **SILU),
            "13.180756 6.0319069 -4.9461694 13.198257 6.032918 -4.9622872",
        ),
        (
            lambda **sizes: PreActivationNet(*sizes.values(), layout=PREACT["published"], **WIDTHS),
            "-6041.5702 -5250.1004 -4109.936 -6040.1288 -5248.9043 -4109.0648",
        ),
        (
            lambda **sizes: PreActivationNet(*sizes.values(), layout=PREACT["wong2020"], **WIDTHS),
            "-16.067349 -14.193319 -11.388589 -16.075216 -14.192223 -11.378603",
        ),
        (  # of pdejorge/N-FGSM and locuslab/fast_adversarial, which RobustBench does not have
            lambda **sizes: PreActivationNet(*sizes.values(), layout=PREACT["input_shortcut"], **WIDTHS),
            "-5436.2963 -4730.9791 -3711.4468 -5454.9376 -4747.3881 -3724.5336",
        ),
        pytest.param(
            partial(PreActResNet, **SILU),
            "2832057.2 2524071.8 2048440.1 2857960.7 2547067.7 2067001.0",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda **sizes: ResNet(
                *sizes.values(), stage_channels=(256, 512, 1024, 2048), blocks=(1, 1, 1, 1), block=Bottleneck
            ),
            "13174.685 7387.1887 -5616.0929 12921.463 7246.8243 -5506.492",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ResNet18, "246409.61 -799019.03 -1791377.6 178067.74 -871510.95 -1863204.7", marks=pytest.mark.slow
        ),
    ],
    ids=[
        "wide",
        "wide deepmind",
        "preact",
        "preact wong2020",
        "preact input_shortcut",
        "preact deepmind",
        "bottleneck",
        "resnet18",
    ],
)
def test_logits_are_those_of_robustbench(make, logits: str) -> None:
    net = make(**SMALL).double().eval()
    ours_of = {new: old for old, new in getattr(net, "published_names", {}).items()}
    shapes = {key: tensor.shape for key, tensor in renamed(net.state_dict(), ours_of).items()}
    net.load_state_dict(renamed(filled(shapes), getattr(net, "published_names", {})))
    images = (torch.sin(torch.arange(2 * 3 * 32 * 32, dtype=torch.float64)) + 1).view(2, 3, 32, 32) / 2
    expected = torch.tensor([float(value) for value in logits.split()], dtype=torch.float64).view(2, 3)
    torch.testing.assert_close(net(images), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("make", "count", "last"),
    [
        (partial(WideResNet, depth=16, width=1, activation="gelu"), 13, "relu"),
        (partial(WideResNet, depth=16, width=1, **SILU), 13, "relu"),
        (partial(PreActResNet, variant="wong2020", activation="leaky_relu"), 16, "layer4.1.relu2"),
    ],
)
def test_every_activation_is_a_default_layer(make, count: int, last: str) -> None:
    layers = find_layers(make(**SMALL), torch.rand(2, 3, 8, 8))
    assert len(layers) == count and layers[-1].name == last


@pytest.mark.slow
def test_a_file_of_robustbench_s_form_is_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, wrapper in (("Wong2020Fast", "module."), ("Engstrom2019Robustness", "model.")):
        state = filled({key: torch.Size(shape) for key, shape in PUBLISHED[name].items()})
        state |= {"mu": torch.full((1, 3, 1, 1), 0.5), "sigma": torch.full((1, 3, 1, 1), 0.25)}
        net = FULL[name](channels=3, classes=10)
        torch.save({"state_dict": {f"{wrapper}{key}": tensor for key, tensor in state.items()}}, tmp_path / "file.pt")
        load_state_dict_file(net, tmp_path / "file.pt")
        state = renamed(state, getattr(net, "published_names", {}))
        assert all(torch.equal(tensor, state[key].to(tensor.dtype)) for key, tensor in net.state_dict().items())
        assert "look like a normalization" in caplog.text


def test_a_wide_network_starts_from_the_initialization_of_published_code() -> None:
    for variant, head in (("published", "fc"), ("deepmind", "logits")):
        torch.manual_seed(0)
        net = WideResNet(**SMALL, depth=10, width=4, variant=variant)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):  # normal with variance 2 / (kernel area * output channels)
                expected = (2 / (module.kernel_size[0] * module.kernel_size[1] * module.out_channels)) ** 0.5
                assert module.weight.std().item() == pytest.approx(expected, rel=0.15)
        assert not net.get_submodule(head).bias.any()


def test_odd_sizes_and_sizes_that_do_not_exist() -> None:
    from nsr.errors import InputError

    for make in (
        partial(WideResNet, depth=10, width=1),
        partial(PreActivationNet, layout=PREACT["deepmind"], **WIDTHS),
    ):
        net: nn.Module = make(**SMALL)
        assert net(torch.rand(2, 3, 13, 13)).shape == (2, 3)
    assert WideResNet(**SMALL, depth=10, width=1, **SILU)(torch.rand(2, 3, 13, 13)).shape == (2, 3)
    for wrong, message in (
        ({"depth": 30}, r"depth is 30; it must be 6 n \+ 4 for n blocks a stage, such as 28, 34 or 70"),
        ({"width": 0}, "width is 0; it must be a whole number at least 1"),
        ({"variant": "trades"}, "variant is 'trades'; it must be one of published, deepmind"),
    ):
        with pytest.raises(InputError, match=message):
            WideResNet(**SMALL, **wrong)
    with pytest.raises(InputError, match="depth is 20; it must be one of 18, 34"):
        PreActResNet(**SMALL, depth=20)
