"""Which axis of a layer's output holds the batch and which the neurons: any order gives the same numbers."""

from __future__ import annotations

import copy
import csv

import pytest
import torch
from reference import hooks, slow_sensitivity
from torch import Tensor, nn
from torch.nn import functional as F

from nsr.attacks import AdaptiveAttack
from nsr.errors import InputError
from nsr.features import FeatureExtractor, capture_features
from nsr.interventions.patching import Patcher
from nsr.layers import Layer, find_layers
from nsr.metrics.sensitivity import NetworkSensitivity, network_sums
from nsr.sensitivity import activation_difference, most_sensitive, neuron_sensitivity
from nsr.stabilizer import SensitivityStabilizer

IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NOISE = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
ADVERSARIAL = (IMAGES + 0.1 * NOISE).clamp(max=1)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


class Sequence(nn.Module):
    """Rows of an image as a sequence of 8 steps, through a part that takes the batch first or second."""

    def __init__(self, part: nn.Module, *, batch_first: bool):
        super().__init__()
        self.batch_first, self.embed, self.part, self.head = batch_first, nn.Linear(24, 8), part, nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.embed(images.permute(0, 2, 1, 3).flatten(2))  # (batch, step, 8)
        rows = rows if self.batch_first else rows.transpose(0, 1)
        outputs = self.part(rows, rows, rows) if isinstance(self.part, nn.MultiheadAttention) else self.part(rows)
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs
        return self.head(outputs.mean(1 if self.batch_first else 0))


def encoder(batch_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=batch_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


PARTS = {
    "lstm": lambda first: nn.LSTM(8, 8, batch_first=first),
    "bidirectional": lambda first: nn.GRU(8, 4, batch_first=first, bidirectional=True),
    "attention": lambda first: nn.MultiheadAttention(8, 2, batch_first=first),
    "encoder": encoder,
}


def both_orders(kind: str) -> tuple[nn.Module, nn.Module]:
    """The same weights, batch first and sequence first, in eval mode."""
    torch.manual_seed(0)
    first, second = (Sequence(PARTS[kind](order), batch_first=order).eval() for order in (True, False))
    second.load_state_dict(first.state_dict())
    return first, second


@pytest.mark.parametrize("kind", PARTS)
def test_sequence_first_gives_the_numbers_of_batch_first(kind, caplog):
    """Features, sensitivities, the stabilizing term, patched passes and the adaptive attack."""
    names = ["part.layers.0", "part.layers.1"] if kind == "encoder" else ["part"]
    results = []
    for net in both_orders(kind):
        layers = find_layers(net, IMAGES[:2], names)
        assert [(layer.neurons, layer.batch_dim) for layer in layers] == [(8, 0 if net.batch_first else 1)] * len(names)
        extractor = FeatureExtractor(net, layers)
        clean, adversarial = extractor(IMAGES)[1], extractor(ADVERSARIAL)[1]
        assert {value.shape for value in clean.values()} == {(6, 8, 8)}
        metric = NetworkSensitivity(layers)
        metric.update(*network_sums(layers, clean, adversarial), len(IMAGES))
        measured = {name: each.absolute for name, each in metric.compute().items()}
        patcher = Patcher(net, layers, IMAGES)
        before, after = patcher.record(IMAGES), patcher.record(ADVERSARIAL)
        patched = [patcher.logits(after, n, before.features[n], torch.eye(8, dtype=torch.bool)) for n in names]
        attack = AdaptiveAttack(epsilon=0.1, steps=2, layers=names)
        moved = attack(net, IMAGES, torch.arange(6) % 4, generator=torch.Generator().manual_seed(3))
        term = SensitivityStabilizer(top=3)(clean, adversarial)
        results.append([*measured.values(), term, *patched, moved, *(clean[name] for name in names)])
        if net.batch_first:  # the oracle: (batch, step, neuron), as the module itself returns it
            with capture_features(net, names) as raw:
                net(IMAGES)
                plain = dict(raw)
                net(ADVERSARIAL)
            for name in names:
                expected = slow_sensitivity(plain[name].double(), raw[name].double(), neuron_dim=2)
                torch.testing.assert_close(measured[name], torch.tensor(expected).double(), rtol=1e-5, atol=1e-8)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert not caplog.records


class ChannelsLast(nn.Module):
    """A ConvNeXt-like block: (batch, channel, height, width) outside, channels last inside, all sizes alike."""

    def __init__(self, size: int = 8, *, flatten: bool = False):
        super().__init__()
        self.stem = nn.Conv2d(3, size, 3, padding=1)
        self.norm, self.wide, self.act, self.narrow = (
            nn.LayerNorm(size),
            nn.Linear(size, size),
            nn.GELU(),
            nn.Identity(),
        )
        self.head = nn.Linear(size**3 if flatten else size, 4)
        self.flatten = flatten

    def forward(self, images: Tensor) -> Tensor:
        values = self.stem(images)
        inner = self.narrow(self.act(self.wide(self.norm(values.permute(0, 2, 3, 1)))))
        values = values + inner.permute(0, 3, 1, 2)
        return self.head(values.flatten(1) if self.flatten else values.mean((2, 3)))


@pytest.mark.parametrize("flatten", [False, True])  # a network that takes one image size alone
def test_channels_last_where_height_width_and_channels_are_alike(flatten):
    torch.manual_seed(0)
    net = ChannelsLast(flatten=flatten)
    last = {layer.name: layer.neuron_dim for layer in find_layers(net, IMAGES[:2], "[!h]*")}
    assert last == {"stem": 1, "norm": -1, "wide": -1, "act": -1, "narrow": -1}
    (layer,) = find_layers(net, IMAGES[:2])
    assert layer == Layer("act", 8, -1)
    features = FeatureExtractor(net, [layer])(IMAGES)[1]["act"]
    expected = F.gelu(net.wide(net.norm(net.stem(IMAGES).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
    torch.testing.assert_close(features, expected)


def test_frozen_weights_and_inference_mode_change_nothing():
    net = ChannelsLast(flatten=True).requires_grad_(False)
    with torch.inference_mode():
        assert find_layers(net, IMAGES[:2]) == [Layer("act", 8, -1)]
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in net.parameters())
    assert not any(sum(counts) for counts in hooks(net).values())


class Positions(nn.Module):
    """A network of the positions alone, as in Swin V2, and windows folded into the batch."""

    def __init__(self):
        super().__init__()
        self.table, self.stem, self.head = (
            nn.Sequential(nn.Linear(2, 4), nn.ReLU()),
            nn.Conv2d(3, 4, 1),
            nn.Linear(4, 4),
        )
        self.act, self.windows = nn.ReLU(), nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        bias = self.table(torch.ones(2, 2)).sum(0)
        values = self.act(self.stem(images)) + bias.view(1, 4, 1, 1)
        windows = self.windows(values.unflatten(2, (2, -1)).transpose(1, 2).flatten(0, 1))  # (batch * 2, 4, ...)
        return self.head(windows.unflatten(0, (-1, 2)).mean((1, 3, 4)))


def test_outputs_without_a_batch_axis_are_left_out_in_one_line(caplog):
    net = Positions()
    assert find_layers(net, IMAGES[:2]) == [Layer("act", 4)]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "layers whose output has no batch axis are left out: 'table.1', 'windows'"
    caplog.clear()
    assert [layer.name for layer in find_layers(net, IMAGES[:2], "[!ht]*")] == ["stem", "act"]
    assert "no batch axis are left out: 'windows'" in caplog.text
    for name in ("table.1", "windows"):
        with pytest.raises(InputError, match=rf"layer '{name}' has an output without a batch axis: \(") as caught:
            find_layers(net, IMAGES[:2], name)
        assert "\n" not in str(caught.value)


def test_the_user_sets_the_axis(caplog):
    net = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(192, 4))  # nothing says what a neuron of its ReLU is
    assert find_layers(net, IMAGES[:2]) == [Layer("0", 3)]
    assert "the usual one is taken: '0@1'" in caplog.text
    caplog.clear()
    assert find_layers(net, IMAGES[:2], ["0@-1", "*"]) == [Layer("0", 8, -1), Layer("1", 192), Layer("2", 4)]
    assert find_layers(net, IMAGES[:2], "0@2") == [Layer("0", 8, 2)]
    assert not caplog.records
    for name, text in {
        "0@0": "on axis 0",
        "0@4": "on axis 4",
        "0@x": "follows @ is the axis",
        "0@": "follows @",
    }.items():
        with pytest.raises(InputError, match=text) as caught:
            find_layers(net, IMAGES[:2], name)
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- activations that are functions


class Unit(nn.Module):
    """conv, BatchNorm and relu as a function, as in torchvision's Inception: its output is the activation."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(images)), inplace=True)


class PreActivation(nn.Module):
    """A block whose activations are functions inside it."""

    def __init__(self, channels: int = 4):
        super().__init__()
        self.one, self.two = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return images + self.two(F.relu(self.one(F.relu(images))))


class Swish(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values * values.sigmoid()


class Net(nn.Sequential):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).mean((2, 3))


def test_activation_functions_are_found(caplog):
    net = Net(Unit(3), nn.Sequential(Unit(4), nn.Identity()), nn.Conv2d(4, 5, 1), Swish(), nn.Conv2d(5, 4, 1))
    assert [layer.name for layer in find_layers(net, IMAGES[:2])] == ["0", "1.0", "3"]
    assert not caplog.records


@pytest.mark.parametrize(
    ("blocks", "activations", "names", "line"),
    [
        (2, 1, ["1", "2", "3"], "Net: the default layers are 1 of its 5 activations and the outputs of its 2 blocks"),
        (1, 3, ["1", "2", "3"], "Net: the default layers are 3 of its 5 activations; the others are functions"),
    ],
)
def test_how_much_of_the_network_the_default_hooks(blocks, activations, names, line, caplog):
    parts = [PreActivation() for _ in range(blocks)]
    net = Net(nn.Conv2d(3, 4, 1), *(nn.ReLU() for _ in range(activations)), *parts, nn.Conv2d(4, 4, 1))
    assert [layer.name for layer in find_layers(net, IMAGES[:2])] == names
    assert line in caplog.text


def test_activations_outside_the_blocks_of_a_token_model_are_hooked_too():
    class Hybrid(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.act, self.encoder = nn.Conv2d(3, 8, 4, 4), nn.Hardswish(), encoder(True)
            self.head = nn.Linear(8, 4)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.encoder(self.act(self.stem(images)).flatten(2).transpose(1, 2)).mean(1))

    layers = find_layers(Hybrid(), IMAGES[:2])
    assert layers == [Layer("act", 8), *(Layer(f"encoder.layers.{k}", 8, -1) for k in range(2))]


# ---------------------------------------------------------------- values that are no measurement


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_integer_and_bool_maps_are_cast(dtype, distance):
    clean, adversarial = (torch.randint(0, 2, (3, 4, 5), generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    got = activation_difference(clean.to(dtype), adversarial.to(dtype), distance=distance)
    torch.testing.assert_close(got, activation_difference(clean.float(), adversarial.float(), distance=distance))
    mixed = activation_difference(clean.to(dtype), adversarial.double() / 3, distance=distance)
    assert torch.equal(mixed, activation_difference(clean.double(), adversarial.double() / 3, distance=distance))


@pytest.mark.parametrize("measure", [neuron_sensitivity, lambda *views: activation_difference(*views, distance="l2")])
def test_complex_and_empty_maps_are_refused(measure):
    for views, text in {
        (torch.ones(2, 3, dtype=torch.complex64), torch.ones(2, 3)): "features are complex",
        (torch.ones(2, 3), torch.ones(2, 3, dtype=torch.complex64)): "features are complex",
        (torch.ones(2, 3, 0), torch.ones(2, 3, 0)): "hold no values",
        (torch.ones(2, 0), torch.ones(2, 0)): "hold no values",
    }.items():
        with pytest.raises(InputError, match=text) as caught:
            measure(*views)
        assert "\n" not in str(caught.value)


def test_a_sensitivity_that_is_not_a_number_is_refused():
    assert most_sensitive(torch.tensor([1.0, torch.inf, 3.0]), 2).tolist() == [1, 2]
    with pytest.raises(InputError, match="of 2 of 4 neurons is nan, the first is neuron 1"):
        most_sensitive(torch.tensor([1.0, torch.nan, 3.0, torch.nan]), 1)


def test_layers_survive_copies():
    layer = Layer("rnn", 5, -1, batch_dim=1)
    output = torch.rand(8, 6, 5)
    features = copy.deepcopy(layer).to_features(output)
    assert features.shape == (6, 5, 8)
    assert torch.equal(layer.to_output(features), output)
    assert torch.equal(features[2, 3], output[:, 2, 3])


# ---------------------------------------------------------------- networks of torchvision and timm

FIRST, LAST = ({1}, {-1})
ARCHITECTURES = {  # axes by their documentation: {2: (batch, unit), 3: tokens, 4: maps}
    "torchvision.squeezenet1_1": FIRST,
    "torchvision.shufflenet_v2_x0_5": FIRST,
    "torchvision.mobilenet_v3_small": FIRST,
    "torchvision.swin_v2_t": LAST,
    "torchvision.convnext_tiny": LAST,
    "timm.swin_tiny_patch4_window7_224": LAST,
    "timm.vit_tiny_patch16_224": LAST,
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name.split(".")[1].startswith("squeeze") else pytest.mark.slow)
        for name in ARCHITECTURES
    ],
)
def test_axes_of_networks_in_use(name):
    from benchmarks.layers import network

    size = 224 if "224" in name else 64
    layers = find_layers(network(name, size), torch.rand(2, 3, size, size))
    assert len(layers) > 5
    assert {layer.neuron_dim for layer in layers} == ARCHITECTURES[name]
    assert {layer.batch_dim for layer in layers} == {0}


@pytest.mark.slow
def test_the_committed_table_is_what_the_command_writes():
    from benchmarks.layers import ARCHITECTURES, TABLE, row

    with TABLE.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert [each[0] for each in rows] == list(ARCHITECTURES)
    for expected in rows[::5]:
        assert [str(value) for value in row(expected[0])] == expected
