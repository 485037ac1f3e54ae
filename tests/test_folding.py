"""BatchNorm folded for an attack: the plain network's gradients, or not folded; the network untouched."""

from __future__ import annotations

import copy

import pytest
import torch
from reference import inventory, residual_net, same_inventory
from torch import nn
from torch.nn.utils import parametrizations

from nsr import models
from nsr.attacks import AdaptiveAttack, GradientAttack
from nsr.attacks.folding import foldable_pairs, folded_batch_norm
from nsr.errors import RunStopped
from nsr.features import FeatureExtractor
from nsr.layers import find_layers
from nsr.training.compilation import compile_in_place
from tests.test_compilation import Graphs


def settled(net: nn.Module, size: int = 8, channels: int = 3) -> nn.Module:
    """The network in eval mode, every BatchNorm's statistics and parameters far from their defaults."""
    generator = torch.Generator().manual_seed(1)
    for norm in net.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)) and norm.running_mean is not None:
            norm.running_mean.normal_(0, 0.1, generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
            if norm.affine:
                nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(norm.bias, 0, 0.1, generator=generator)
    return net.eval()


def images(count: int = 4, *, size: int = 8, dtype=torch.float64) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2), dtype=dtype)


def gradient(net: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    leaf = inputs.clone().requires_grad_()
    logits = net(leaf)
    weights = torch.linspace(-1, 1, logits.shape[1], dtype=logits.dtype)
    return torch.autograd.grad((logits.log_softmax(1) * weights).sum(), leaf)[0]


def relative_errors(net: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """(batch,): each image's |folded - plain| / |plain|, of a network whose inventory must not change."""
    pairs, before = foldable_pairs(net, inputs[:2]), inventory(net)
    plain = gradient(net, inputs)
    with folded_batch_norm(pairs):
        folded = gradient(net, inputs)
    same_inventory(before, inventory(net))
    assert torch.equal(gradient(net, inputs), plain)
    return (folded - plain).flatten(1).norm(dim=1) / plain.flatten(1).norm(dim=1)


def head(channels: int) -> list[nn.Module]:
    return [nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4)]


def chain(*layers: nn.Module, channels: int = 6) -> nn.Module:
    return nn.Sequential(*layers, *head(channels))


class Twice(nn.Module):
    """Two networks that break one rule each: the pair is called twice, or its middle is used elsewhere."""

    def __init__(self, kind: str):
        super().__init__()
        self.conv, self.bn, self.kind = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), kind
        self.kept: list[torch.Tensor] = []
        self.head = nn.Sequential(*head(3))

    def forward(self, x):
        middle = self.conv(x)
        out = self.bn(middle)
        if self.kind == "twice":
            out = self.bn(self.conv(out))
        if self.kind == "used":
            out = out + middle
        if self.kind == "kept":
            self.kept = [middle]
        if self.kind == "weight":
            out = out + self.conv.weight.mean()
        return self.head(out)


class Untraceable(nn.Module):
    """Control flow that depends on the images, around a part without."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x if x.sum() > 0 else -x)


CONV = {"kernel_size": 3, "padding": 1}
FOLDED = {
    "bias": lambda: chain(nn.Conv2d(3, 6, **CONV), nn.BatchNorm2d(6)),
    "no bias, groups": lambda: chain(nn.Conv2d(3, 6, groups=3, bias=False, **CONV), nn.BatchNorm2d(6)),
    "dilation": lambda: chain(nn.Conv2d(3, 6, 3, dilation=2, padding="same"), nn.BatchNorm2d(6)),
    "not affine": lambda: chain(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6, affine=False)),
    "large eps": lambda: chain(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, eps=0.5)),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4)),
    "untraceable": lambda: Untraceable(chain(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))),
}
LEFT = {
    "BatchNorm first": lambda: chain(nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3)),
    "transposed": lambda: chain(nn.ConvTranspose2d(3, 6, 3), nn.BatchNorm2d(6)),
    "circular": lambda: chain(nn.Conv2d(3, 6, padding_mode="circular", **CONV), nn.BatchNorm2d(6)),
    "GroupNorm": lambda: chain(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6)),
    "weight norm": lambda: chain(parametrizations.weight_norm(nn.Conv2d(3, 6, 3)), nn.BatchNorm2d(6)),
    "spectral norm": lambda: chain(parametrizations.spectral_norm(nn.Conv2d(3, 6, 3)), nn.BatchNorm2d(6)),
    **{kind: lambda kind=kind: Twice(kind) for kind in ("twice", "used", "kept", "weight")},
}


@pytest.mark.parametrize("kind", FOLDED)
def test_folded_gradients_are_the_plain_ones(kind):
    net = settled(FOLDED[kind]().double())
    assert len(foldable_pairs(net, images(2))) == 1
    assert 0 < relative_errors(net, images()).max() < 1e-10


@pytest.mark.parametrize("kind", LEFT)
def test_what_cannot_be_folded_is_left_bit_equal(kind):
    net = settled(LEFT[kind]().double())
    assert foldable_pairs(net, images(2)) == []
    assert relative_errors(net, images()).max() == 0


@pytest.mark.parametrize(
    ("name", "pairs"), [("ResNet20", 19), ("SmallCNN", 3), pytest.param("PreActResNet", 8, marks=pytest.mark.slow)]
)
def test_networks_of_nsr(name, pairs):
    net = settled(getattr(models, name)(channels=3, classes=4, image_size=8, activation="silu"))
    assert len(foldable_pairs(net, images(2, dtype=torch.float32))) == pairs
    # SiLU: where a ReLU's input is zero to rounding, two float32 passes differ by more whatever is folded
    assert relative_errors(net, images(2, dtype=torch.float32)).max() < 1e-5
    assert relative_errors(net.double(), images(2)).max() < 1e-10


def test_layers_whose_hooks_would_see_the_difference_are_not_folded():
    net = settled(nn.Sequential(nn.Sequential(nn.Conv2d(3, 6, 3)), nn.BatchNorm2d(6), *head(6)).double())
    seen: list[torch.Tensor] = []
    for place in (net[0], net[0][0], net[1]):
        handle = place.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
        assert relative_errors(net, images()).max() == 0
        handle.remove()
    assert relative_errors(net, images()).max() > 0
    net[2].register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    assert 0 < relative_errors(net, images()).max() < 1e-10


def test_a_batch_norm_in_training_is_not_folded_but_a_frozen_one_is():
    net = residual_net().double().train()
    net.bn1.eval()
    inputs = images()[:, :1]
    calls = {name: [] for name in ("conv1", "conv2")}
    pairs = foldable_pairs(net, inputs)
    for pair in pairs:
        original = pair._fold
        pair._fold = lambda pair=pair, original=original: (calls[names[pair.layer]].append(1), original())
    names = {module: name for name, module in net.named_modules()}
    plain, statistics = gradient(net, inputs), net.bn2.running_mean.clone()
    with folded_batch_norm(pairs):
        folded = gradient(net, inputs)
    assert (len(calls["conv1"]), len(calls["conv2"])) == (1, 0)
    torch.testing.assert_close(folded, plain, rtol=1e-10, atol=1e-14)
    assert not torch.equal(net.bn2.running_mean, statistics)  # as without folding


def test_tokens_that_batch_norm_normalizes_along_another_axis():
    net = settled(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Flatten(), nn.Linear(64, 4)).double())
    tokens = images()[:, 0]  # (batch, token, dim), 8 of each
    assert relative_errors(net, tokens).max() == 0


def test_weights_that_change_inside_are_folded_again():
    net = settled(chain(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)).double())
    with folded_batch_norm(foldable_pairs(net, images(2))):
        gradient(net, images())
        with torch.no_grad():
            net[0].weight.mul_(2)
            net[1].running_var.mul_(3)
        folded = gradient(net, images())
    torch.testing.assert_close(folded, gradient(net, images()), rtol=1e-10, atol=0)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_compiled_passes_fold_new_weights_without_a_new_graph(dtype, bound):
    net = settled(models.SmallCNN(channels=3, classes=4, image_size=8, width=4, activation="silu")).to(dtype)
    written, inputs, graphs = copy.deepcopy(net), images(dtype=dtype), Graphs()
    pairs = foldable_pairs(net, inputs[:2])
    compile_in_place(net, sizes=(len(inputs),), backend=graphs, pairs=pairs)

    def error() -> float:
        plain = gradient(written, inputs)
        assert torch.equal(gradient(net, inputs), plain)  # outside nothing is folded
        with folded_batch_norm(pairs):
            folded = gradient(net, inputs)
        return float(((folded - plain).flatten(1).norm(dim=1) / plain.flatten(1).norm(dim=1)).max())

    for _ in range(3):  # training steps, which write parameters and buffers in place
        with torch.no_grad():
            for tensor in (*net.parameters(), *net.buffers()):
                if tensor.is_floating_point():
                    tensor.mul_(1.1)
        written.load_state_dict(net.state_dict())
        assert 0 < error() < bound
    assert graphs.norms == [3, 0]
    net.conv1.register_forward_hook(lambda module, arguments, output: None)
    assert 0 < error() < bound
    assert graphs.norms == [3, 0, 1]  # what the hook sees is not folded


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_network_that_changes_its_way_ends_the_run():
    net = settled(Twice("plain").double())
    pairs = foldable_pairs(net, images(2))
    compile_in_place(net, sizes=(4,), backend=Graphs(), pairs=pairs)
    net.bn = nn.Identity()
    with pytest.raises(RunStopped, match="performance=off"), folded_batch_norm(pairs):
        net(images())


def test_mixed_precision_casts_folded_weights_once():
    net = settled(chain(nn.Conv2d(3, 6, **CONV), nn.BatchNorm2d(6), nn.Conv2d(6, 6, **CONV), nn.BatchNorm2d(6)))
    inputs = images(dtype=torch.float32)
    pairs, exact = foldable_pairs(net, inputs[:2]), gradient(net, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        plain = gradient(net, inputs)
        with folded_batch_norm(pairs):
            folded = gradient(net, inputs)
            kept = [pair.weight for pair in pairs]
            gradient(net, inputs)
            assert all(
                pair.weight is each and each.dtype is torch.bfloat16 for pair, each in zip(pairs, kept, strict=True)
            )
            with torch.autocast("cpu", enabled=False):
                torch.testing.assert_close(gradient(net, inputs), exact, rtol=1e-4, atol=1e-7)
    assert len(pairs) == 2
    assert (folded - exact).norm() < 1.5 * (plain - exact).norm()  # as far from float32 as bf16 is


def test_a_network_that_changes_its_way_ends_the_run():
    net = settled(Twice("plain").double())
    pairs = foldable_pairs(net, images(2))
    assert len(pairs) == 1
    net.kind = "twice"
    with folded_batch_norm(pairs):  # each call is a pair: still right
        folded = gradient(net, images())
    torch.testing.assert_close(folded, gradient(net, images()), rtol=1e-10, atol=0)
    net.bn, bn = nn.Identity(), net.bn
    with pytest.raises(RunStopped, match="performance=off"), folded_batch_norm(pairs):
        net(images())
    assert "forward" not in {**vars(bn), **vars(net.conv)}


def test_attacks_inside(monkeypatch):
    """The same images from an attack in eval mode; from one in train mode and one that hooks, bit-equal or rounded."""
    net = settled(residual_net().double())
    inputs, labels = images()[:, :1], torch.arange(4) % 3
    extractor = FeatureExtractor(net, find_layers(net, inputs))
    pairs = foldable_pairs(net, inputs[:2])
    assert len(pairs) == 2
    common = {"epsilon": 0.1, "steps": 3}
    for attack in (
        GradientAttack(**common),
        GradientAttack(batch_norm="batch", **common),
        AdaptiveAttack(layers=["conv1", "bn2"], **common),
    ):
        plain = attack(net, inputs, labels, generator=torch.Generator().manual_seed(0))
        with folded_batch_norm(pairs):
            folded = attack(net, inputs, labels, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(folded, plain, rtol=0, atol=1e-12)
    assert extractor(inputs)[0].shape == (4, 3)
