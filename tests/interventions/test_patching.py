"""Patched passes against an explicit forward, one image and neuron at a time, and against whole passes with hooks."""

from __future__ import annotations

import copy

import pytest
import torch
from reference import Counting, Raising, TokenNet, inventory, residual_net, same_inventory, some_images
from torch import Tensor, nn
from torch.nn import functional as F

from nsr.errors import InputError
from nsr.interventions.patching import TRIAL_IMAGES, Patcher
from nsr.layers import Layer, find_layers
from nsr.layers.names import name_and_call
from nsr.layers.passes import named_modules
from nsr.models import Classifier, ResNet20

# of ResidualNet: no shortcut bypasses these
CUTS = ("conv1", "bn1", "relu", "relu#2", "hidden", "dropout", "tanh", "fc")
LAYERS = (*CUTS, "conv2", "bn2")


def explicit(net: nn.Module, image: Tensor, layer: str, neuron: int, instead: Tensor) -> Tensor:
    """The logits of one image (1, ...) with one neuron of one layer returning `instead`; ResidualNet written out."""

    def reached(name: str, value: Tensor) -> Tensor:
        if name != layer:
            return value
        value = value.clone()
        value[0, neuron] = instead
        return value

    def norm(bn: nn.BatchNorm2d, value: Tensor) -> Tensor:
        shape = (1, -1, 1, 1)
        scaled = (value - bn.running_mean.view(shape)) / (bn.running_var.view(shape) + bn.eps).sqrt()
        return scaled * bn.weight.view(shape) + bn.bias.view(shape)

    value = reached("conv1", F.conv2d(image, net.conv1.weight, padding=1))
    value = reached("bn1", norm(net.bn1, value))
    shortcut = reached("relu", value.clamp(min=0))
    value = reached("conv2", F.conv2d(shortcut, net.conv2.weight, padding=1))
    value = reached("bn2", norm(net.bn2, value))
    value = reached("relu#2", (value + shortcut).clamp(min=0))
    value = reached("hidden", value.mean((2, 3)) @ net.hidden.weight.T + net.hidden.bias)
    value = reached("tanh", reached("dropout", value).tanh())
    return reached("fc", value @ net.fc.weight.T + net.fc.bias)[0]


def whole_pass(net: nn.Module, layer: Layer, images: Tensor, replacement: Tensor, mask: Tensor) -> Tensor:
    """The logits of a plain pass whose layer's output a hook replaces; `replacement` is (batch, neuron, ...)."""
    name, which = name_and_call(layer.name)
    calls = []
    axes = list(range(replacement.ndim))
    neurons = axes.pop(layer.neuron_dim)
    axes.remove(layer.batch_dim)
    order = [layer.batch_dim, neurons, *axes]  # of the output's axes in the replacement
    shape = [1] * replacement.ndim
    shape[layer.neuron_dim] = -1
    replacement = replacement.permute([order.index(axis) for axis in range(replacement.ndim)])

    def replace(module, inputs, output):
        calls.append(1)
        if len(calls) != (which or 1):
            return None
        value = output[0] if isinstance(output, tuple) else output
        mixed = torch.where(mask.view(shape), replacement, value)
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

    handle = named_modules(net)[name].register_forward_hook(replace)
    try:
        with torch.no_grad():
            return net(images)
    finally:
        handle.remove()


def check_whole_passes(net, patcher, layer: Layer, clean, adversarial, masks: Tensor) -> None:
    """Patched passes against whole ones, mask by mask."""
    got = patcher.logits(adversarial, layer.name, clean.features[layer.name], masks)
    for mask, logits in zip(masks, got, strict=True):
        expected = whole_pass(net, layer, adversarial.images, clean.features[layer.name], mask)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)


def recorded(net: nn.Module, names: object = "*", *, images: Tensor | None = None, dtype=torch.float64):
    """(patcher, layers, clean recording, another one); 'relu' is its first call alone."""
    net = net.to(dtype)
    names = "relu#1" if names == "relu" else names
    images = some_images(dtype=dtype) if images is None else images.to(dtype)
    layers = find_layers(net, images[:2], names)
    patcher = Patcher(net, layers, images)
    return patcher, layers, patcher.record(images), patcher.record(images.flip(0) / 2)


# ---------------------------------------------------------------- the definition
@pytest.mark.parametrize("layer", LAYERS)
def test_each_image_and_neuron_against_an_explicit_forward(layer):
    net = residual_net()
    patcher, (found,), clean, adversarial = recorded(net, layer)
    net.eval()
    for base, other in ((adversarial, clean), (clean, adversarial)):
        masks = torch.eye(found.neurons, dtype=torch.bool)
        got = patcher.logits(base, layer, other.features[layer], masks)
        assert got.shape == (found.neurons, 6, 3)
        changed = 0
        for neuron in range(found.neurons):
            for i in range(len(base.images)):
                instead = other.features[layer][i, neuron]
                expected = explicit(net, base.images[i : i + 1], layer, neuron, instead)
                torch.testing.assert_close(got[neuron, i], expected, rtol=0, atol=1e-12)
                changed += not torch.allclose(expected, base.logits[i])
        assert changed > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layer", CUTS)
def test_where_nothing_bypasses_the_layer(layer, dtype):
    """All clean: the same bits as the clean logits; none: the adversarial ones; top k clean: rest adversarial."""
    patcher, (found,), clean, adversarial = recorded(residual_net(), layer, dtype=dtype)
    features = clean.features[layer], adversarial.features[layer]
    everything = torch.ones(1, found.neurons, dtype=torch.bool)
    assert torch.equal(patcher.logits(adversarial, layer, features[0], everything)[0], clean.logits)
    assert torch.equal(patcher.logits(adversarial, layer, features[0], ~everything)[0], adversarial.logits)
    assert torch.equal(patcher.logits(clean, layer, features[1], everything)[0], adversarial.logits)
    assert not torch.equal(clean.logits, adversarial.logits)
    top = torch.stack([torch.arange(found.neurons) < k for k in range(found.neurons + 1)])
    rest = patcher.logits(clean, layer, features[1], ~top)
    assert torch.equal(patcher.logits(adversarial, layer, features[0], top), rest)


# ---------------------------------------------------------------- any network
class Shared(nn.Module):
    """A ReLU called inside a finished block and again, a module that returns a tuple, and one without a batch."""

    class Block(nn.Module):
        def __init__(self, relu: nn.Module):
            super().__init__()
            self.linear, self.relu = nn.Linear(6, 6), relu

        def forward(self, values: Tensor) -> tuple[Tensor, Tensor] | Tensor:
            return self.relu(self.linear(values))

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
            return self.first(values), self.second(values)

    class Offsets(nn.Module):
        def __init__(self):
            super().__init__()
            self.values = nn.Parameter(torch.randn(6))

        def forward(self) -> Tensor:
            return self.values[None]  # (1, 6), no batch

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.block, self.two, self.offsets = self.Block(self.relu), self.Two(), self.Offsets()
        self.hidden, self.fc = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        values = self.block(images.flatten(1)[:, :6])
        first, second = self.two(values)
        values += self.relu(first - self.offsets()) * second
        return self.fc(self.relu(self.hidden(values)))


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    resnet = ResNet20(channels=3, classes=10, image_size=8, variant="projection_bias")
    return {
        "residual": (residual_net(), some_images(4)),
        "tokens": (TokenNet(), some_images(4)),
        "shared": (Shared(), some_images(4)),
        "resnet20": (resnet, some_images(4, size=8, channels=3)),
        "normalized": (Classifier(residual_net(), [0.4], [0.2]), some_images(4)),
        "sequential": (nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.ReLU(True), nn.Linear(5, 3)), some_images(4)),
    }


@pytest.mark.parametrize(
    "name",
    ["residual", "tokens", "shared", pytest.param("resnet20", marks=pytest.mark.slow), "normalized", "sequential"],
)
def test_every_layer_of_every_network_against_whole_passes(name):
    net, images = networks()[name]
    patcher, layers, clean, adversarial = recorded(net, "[!o]*", images=images)  # all but Shared's offsets
    net.eval()
    generator = torch.Generator().manual_seed(1)
    assert len(layers) > 2
    for layer in layers:
        masks = torch.rand(3, layer.neurons, generator=generator) < 0.5
        check_whole_passes(net, patcher, layer, clean, adversarial, masks)


@pytest.mark.slow
def test_a_compiled_network():
    plain = residual_net()
    net = torch.compile(copy.deepcopy(plain), backend="eager").eval()
    net(some_images())  # compiled before it is patched
    results = []
    for each in (plain, net):
        patcher, _, clean, adversarial = recorded(each, ["relu", "bn2"], dtype=torch.float32)
        masks = torch.tensor([[True, False, True, False]])
        results.append([patcher.logits(adversarial, name, clean.features[name], masks) for name in ("relu", "bn2")])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


# ---------------------------------------------------------------- what runs, and what stays unchanged
class Overwriting(nn.Module):
    """Writes into the shortcut after the layer has read it and before it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = Counting(nn.Linear(36, 5)), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, images: Tensor) -> Tensor:
        shortcut = self.first(images.flatten(1))
        hidden = self.second(shortcut)
        shortcut += 1
        return self.fc(shortcut * hidden)


def test_kept_outputs_are_copies_from_before_operations_in_place():
    """Otherwise the trial would notice, and whole passes would run."""
    net = Overwriting()
    patcher, (layer,), clean, adversarial = recorded(net, "second")
    before = net.first.images
    masks = torch.tensor([[True, False, True, False, False]])
    patcher.logits(adversarial, "second", clean.features["second"], masks)
    assert net.first.images == before
    check_whole_passes(net, patcher, layer, clean, adversarial, masks)


def test_only_what_is_read_is_kept():
    net, images = networks()["resnet20"]
    assert recorded(net, ["relu1", "layer?.?"], images=images)[2].outputs == {}
    inside = recorded(net, "layer1.1.relu1", images=images)[2].outputs
    assert len(inside) == 1  # the block's input, for the shortcut
    assert next(iter(inside.values())).shape == (4, 16, 8, 8)


@pytest.mark.parametrize("name", ["residual", "shared", "tokens"])
def test_the_network_is_left_as_it_was(name):
    net, images = networks()[name]
    net = net.double()
    next(net.children()).train(False)
    before = inventory(net)
    patcher, layers, clean, adversarial = recorded(net, "[!o]*", images=images)
    for layer in layers:
        patcher.logits(adversarial, layer.name, clean.features[layer.name], torch.ones(2, layer.neurons).bool())
    same_inventory(before, inventory(net))
    assert not any("forward" in vars(module) for module in net.modules())
    assert not clean.logits.requires_grad


def test_after_an_error_too():
    inner = residual_net().double()
    net = Raising(inner, at=10**9)
    patcher, _, clean, adversarial = recorded(net, "net.bn2")
    before = inventory(net)
    net.at = net.passes + 1
    with pytest.raises(RuntimeError, match="the network broke"):
        patcher.logits(adversarial, "net.bn2", clean.features["net.bn2"], torch.ones(1, 4).bool())
    with pytest.raises(RuntimeError, match="the network broke"):
        patcher.record(clean.images)
    same_inventory(before, inventory(net))
    assert not any("forward" in vars(module) for module in net.modules())


def test_a_replaced_forward_stays_and_hooks_change_an_output_once():
    net = residual_net().double()
    plain = net.bn1.forward
    mine = net.bn1.forward = lambda values: 2 * plain(values)
    net.relu.register_forward_hook(lambda module, inputs, output: output + 1)
    net.conv1 = Counting(net.conv1)
    patcher, layers, clean, adversarial = recorded(net)
    net.eval()
    before = net.conv1.images
    patcher.logits(adversarial, "bn2", clean.features["bn2"], torch.ones(1, 4).bool())
    assert net.conv1.images == before  # no whole pass ran
    assert net.bn1.forward is mine
    for layer in layers:
        check_whole_passes(net, patcher, layer, clean, adversarial, (torch.arange(layer.neurons) % 2 == 0)[None])


# ---------------------------------------------------------------- what cannot be patched
class Noisy(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values + torch.rand_like(values)


class Mixing(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values - values.sum(0) * torch.arange(1.0, len(values) + 1)[:, None]


@pytest.mark.parametrize("part", [Noisy(), Mixing(), None])
def test_randomness_mixed_images_and_outputs_without_a_batch_are_refused(part):
    net, layer, message = Shared(), "offsets", "layer 'offsets' has an output without a batch axis"
    if part is not None:
        net, layer = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), part, nn.Linear(5, 3)), "2"
        message = "layer '2': its output cannot be replaced in a pass of"
    with pytest.raises(InputError, match=message):
        recorded(net, layer)


def test_a_network_that_depends_on_its_images_is_refused():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.left, self.right = nn.Linear(36, 5), nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, images: Tensor) -> Tensor:
            values = self.first(images.flatten(1))
            return self.left(values) if images.mean() > 0.4 else self.right(values)

    net, images = Fork(), some_images()
    patcher = Patcher(net, find_layers(net, images, "first"), images)
    with pytest.raises(InputError, match="Fork calls different modules for different images"):
        patcher.record(images / 4)


class Prototypes(nn.Module):
    """Logits by closeness to one prototype per class: a table with as many rows as a trial has images."""

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows = nn.Parameter(torch.randn(3, 5))

        def forward(self) -> Tensor:
            return 2 * self.rows

    def __init__(self) -> None:
        super().__init__()
        self.table, self.hidden = self.Table(), Counting(nn.Linear(36, 5))

    def forward(self, images: Tensor) -> Tensor:
        table = self.table()
        return self.hidden(images.flatten(1)) @ table.T


def test_whole_passes_run_where_reusing_outputs_would_be_wrong():
    assert TRIAL_IMAGES == 3
    net = Prototypes()
    patcher, (layer,), clean, adversarial = recorded(net, "hidden")
    masks = torch.tensor([[True, False, True, False, False], [False, False, False, True, True]])
    check_whole_passes(net, patcher, layer, clean, adversarial, masks)
