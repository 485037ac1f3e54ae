"""Slow and obvious oracles, written from the definitions. Nothing here imports nsr.

Small networks, an inventory of everything a network carries, double loops over samples and neurons.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from hypothesis import settings
from torch import Tensor, nn

# the same examples on every machine and in every run
PROPERTY = settings(deadline=None, derandomize=True, max_examples=40, database=None)
COSTLY_PROPERTY = settings(PROPERTY, max_examples=20)


# ---------------------------------------------------------------- neuron sensitivity
def outputs_of_neuron(features: Tensor, sample: int, neuron: int, neuron_dim: int) -> list[float]:
    """F_lm(x_i): every value that neuron m has on sample i."""
    return features[sample].select(neuron_dim if neuron_dim < 0 else neuron_dim - 1, neuron).flatten().tolist()


def slow_sensitivity(clean: Tensor, adversarial: Tensor, *, kind: str = "absolute", neuron_dim: int = 1) -> list[float]:
    """Neuron by neuron, sample by sample, in Python's floats with exact sums."""
    samples, neurons = clean.shape[0], clean.shape[neuron_dim]
    answer = []
    for m in range(neurons):
        distances, sizes, gaps = [], [], []
        for i in range(samples):
            before = outputs_of_neuron(clean, i, m, neuron_dim)
            after = outputs_of_neuron(adversarial, i, m, neuron_dim)
            dim = len(before)
            distances.append(math.fsum(abs(a - b) for a, b in zip(before, after, strict=True)))
            sizes.append(math.fsum(abs(a) for a in before))
            gaps.append(abs(math.fsum(before) / dim - math.fsum(after) / dim))
        if kind == "absolute":
            answer.append(math.fsum(distance / dim for distance in distances) / samples)
        elif kind == "relative":
            moved, size = math.fsum(distances), math.fsum(sizes)
            answer.append(0.0 if moved == 0 and size == 0 else moved / size)
        else:
            answer.append(math.fsum(gaps) / samples)
    return answer


def slow_mean_activation(clean: Tensor, *, neuron_dim: int = 1) -> list[float]:
    """The mean of |F_lm(x_i)| over samples and positions."""
    answer = []
    for m in range(clean.shape[neuron_dim]):
        values = [v for i in range(len(clean)) for v in outputs_of_neuron(clean, i, m, neuron_dim)]
        answer.append(math.fsum(map(abs, values)) / len(values))
    return answer


def slow_most_sensitive(sensitivity: Sequence[float], count: int) -> list[int]:
    """Picks the largest `count` times; the first of equal ones."""
    left = list(range(len(sensitivity)))
    chosen = []
    while left and len(chosen) < count:
        best = left[0]
        for neuron in left:
            if sensitivity[neuron] > sensitivity[best]:
                best = neuron
        chosen.append(best)
        left.remove(best)
    return chosen


def slow_stabilizer_term(
    clean: dict[str, Tensor], adversarial: dict[str, Tensor], *, count: dict[str, int], weight: float
) -> Tensor:
    """weight * mean over layers of mean over the layer's `count` most sensitive neurons of absolute(l, m).

    With autograd; the neurons are chosen by numbers, so nothing flows through the choice. Neurons on axis 1.
    """
    layer_means = []
    for name in clean:
        samples, neurons = clean[name].shape[:2]
        sensitivities = []
        for m in range(neurons):
            total = clean[name].new_zeros(())
            for i in range(samples):
                total = total + (clean[name][i, m] - adversarial[name][i, m]).abs().mean()
            sensitivities.append(total / samples)
        chosen = slow_most_sensitive([value.item() for value in sensitivities], count[name])
        layer_means.append(sum(sensitivities[m] for m in chosen) / len(chosen))
    return weight * sum(layer_means) / len(layer_means)


def slow_softmax(row: Tensor) -> list[Tensor]:
    """p_k = exp(z_k) / sum of exp(z_j), one by one."""
    exponentials = [torch.exp(value) for value in row]
    return [exponential / sum(exponentials) for exponential in exponentials]


def slow_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean over samples of (1 - s) * -log p_y + s * mean over classes of -log p_k, exponentials written out."""
    total = logits.new_zeros(())
    for row, label in zip(logits, labels.tolist(), strict=True):
        p = slow_softmax(row)
        total = total - (1 - smoothing) * torch.log(p[label])
        if smoothing:
            total = total - smoothing * sum(torch.log(p_k) for p_k in p) / len(p)
    return total / len(logits)


def slow_kl_divergence(logits: Tensor, other: Tensor) -> list[Tensor]:
    """KL(p || q) = sum over k of p_k * log(p_k / q_k), sample by sample."""
    answer = []
    for row, other_row in zip(logits, other, strict=True):
        p, q = slow_softmax(row), slow_softmax(other_row)
        answer.append(sum(p_k * torch.log(p_k / q_k) for p_k, q_k in zip(p, q, strict=True)))
    return answer


def slow_boosted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over samples of -log p_y - log(1 - max over k != y of p_k)."""
    total = logits.new_zeros(())
    for row, label in zip(logits, labels.tolist(), strict=True):
        p = slow_softmax(row)
        rival = max((p_k for k, p_k in enumerate(p) if k != label), key=Tensor.item)
        total = total - torch.log(p[label]) - torch.log(1 - rival)
    return total / len(logits)


def slow_weighted_kl_divergence(logits: Tensor, other: Tensor, labels: Tensor) -> Tensor:
    """Mean over samples of KL(p || q) * (1 - p_y)."""
    total = logits.new_zeros(())
    for row, label, divergence in zip(logits, labels.tolist(), slow_kl_divergence(logits, other), strict=True):
        total = total + divergence * (1 - slow_softmax(row)[label])
    return total / len(logits)


def slow_logit_pairing(logits: Tensor, other: Tensor) -> Tensor:
    """Mean over samples and classes of the squared difference."""
    samples, classes = logits.shape
    squares = [(logits[i, k] - other[i, k]) ** 2 for i in range(samples) for k in range(classes)]
    return sum(squares) / (samples * classes)


# ---------------------------------------------------------------- a run
def quiet_trainer(**settings_):
    """A Trainer that trains alone, on the CPU, and writes no file."""
    import pytorch_lightning as pl

    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler")
    fixed = {**dict.fromkeys(quiet, False), "accelerator": "cpu", "inference_mode": False, "limit_val_batches": 0}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "GPU available but not used")
        return pl.Trainer(**{**fixed, **settings_})


def fit(module: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], *, epochs: int = 1, resumed=None, **settings_):
    """The Trainer of a run over these batches in their order."""
    trainer = quiet_trainer(max_epochs=epochs, **settings_)
    loader = torch.utils.data.DataLoader(list(batches), batch_size=None)
    trainer.fit(module, loader, loader, ckpt_path=resumed)  # a loader for validation, which is left out: no warning
    return trainer


@contextmanager
def counted_passes(net: nn.Module, monkeypatch) -> Iterator[dict[str, int]]:
    """How often the block calls `net`, by its mode and whether a graph is made, and how often it runs autograd."""
    counted: dict[str, int] = {}

    def count(what: str) -> None:
        counted[what] = counted.get(what, 0) + 1

    def forward(net, inputs):
        count(f"{'train' if net.training else 'eval'}, {'gradient' if torch.is_grad_enabled() else 'no gradient'}")

    def backward(run):
        def counting(*arguments, **settings_):
            count("backward")
            return run(*arguments, **settings_)

        return counting

    handle = net.register_forward_pre_hook(forward)
    try:
        with monkeypatch.context() as patch:
            for run in ("grad", "backward"):  # Tensor.backward goes through the second one
                patch.setattr(torch.autograd, run, backward(getattr(torch.autograd, run)))
            yield counted
    finally:
        handle.remove()


# ---------------------------------------------------------------- what a network carries
def hooks(net: nn.Module) -> dict[str, list[int]]:
    """{module: how many hooks of each kind}."""
    kinds = sorted(name for name in vars(nn.Module()) if name.endswith("_hooks"))
    assert "_forward_hooks" in kinds
    assert "_forward_pre_hooks" in kinds
    return {name: [len(getattr(module, kind)) for kind in kinds] for name, module in net.named_modules()}


def inventory(net: nn.Module) -> dict[str, object]:
    """Everything a caller can see of a network, copied: compare two with `same_inventory`."""
    return {
        "parameters": {name: value.detach().clone() for name, value in net.named_parameters()},
        "gradients": {name: copy.deepcopy(value.grad) for name, value in net.named_parameters()},
        "requires_grad": {name: value.requires_grad for name, value in net.named_parameters()},
        "buffers": {name: value.clone() for name, value in net.named_buffers()},
        "modes": {name: module.training for name, module in net.named_modules()},
        "tracking": {name: getattr(module, "track_running_stats", None) for name, module in net.named_modules()},
        "hooks": hooks(net),
    }


def same_inventory(before: dict[str, object], after: dict[str, object]) -> None:
    """Assert that two inventories are equal, tensors bit-identical."""
    assert before.keys() == after.keys()
    for what, entries in before.items():
        assert entries.keys() == after[what].keys(), what
        for name, value in entries.items():
            other = after[what][name]
            same = torch.equal(value, other) if isinstance(value, Tensor) else value == other
            assert same, f"{what} of {name!r} changed: {value} -> {other}"


def assert_bit_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


# ---------------------------------------------------------------- networks
class ResidualNet(nn.Module):
    """BatchNorm overwritten by an in-place ReLU, one ReLU called twice, `out += shortcut`, an in-place dropout."""

    def __init__(self, classes: int = 3, width: int = 4, dropout: float = 0.0):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.hidden = nn.Linear(width, 6)
        self.dropout = nn.Dropout(dropout, inplace=True)
        self.tanh = nn.Tanh()
        self.fc = nn.Linear(6, classes)

    def forward(self, images: Tensor) -> Tensor:
        shortcut = self.relu(self.bn1(self.conv1(images)))
        out = self.bn2(self.conv2(shortcut))
        out += shortcut
        out = self.relu(out)
        return self.fc(self.tanh(self.dropout(self.hidden(out.mean((2, 3))))))

    def values(self, images: Tensor) -> dict[str, Tensor]:
        """Each module's output and the logits, with nothing done in place and without the modules' hooks."""

        def normalized(x: Tensor, bn: nn.BatchNorm2d) -> Tensor:
            statistics = (None, None) if bn.training else (bn.running_mean, bn.running_var)
            return nn.functional.batch_norm(x, *statistics, bn.weight, bn.bias, bn.training, eps=bn.eps)

        conv1 = nn.functional.conv2d(images, self.conv1.weight, padding=1)
        bn1 = normalized(conv1, self.bn1)
        relu = bn1.clamp(min=0)
        conv2 = nn.functional.conv2d(relu, self.conv2.weight, padding=1)
        bn2 = normalized(conv2, self.bn2)
        relu2 = (bn2 + relu).clamp(min=0)
        hidden = relu2.mean((2, 3)) @ self.hidden.weight.T + self.hidden.bias
        tanh = hidden.tanh()
        assert not (self.dropout.training and self.dropout.p), "this oracle knows no dropout"
        logits = tanh @ self.fc.weight.T + self.fc.bias
        convolutional = {"conv1": conv1, "bn1": bn1, "relu": relu, "conv2": conv2, "bn2": bn2, "relu#2": relu2}
        return {**convolutional, "hidden": hidden, "dropout": hidden, "tanh": tanh, "fc": logits}


class TokenNet(nn.Module):
    """Images cut into tokens, two transformer blocks, a classifier on the mean token."""

    def __init__(self, activation: str | nn.Module = "gelu", dim: int = 8, blocks: int = 2):
        super().__init__()
        self.embed = nn.Linear(4, dim)
        settings_ = {"dropout": 0.0, "activation": copy.deepcopy(activation), "batch_first": True}
        layer = nn.TransformerEncoderLayer(dim, 2, 2 * dim, **settings_)
        self.encoder = nn.TransformerEncoder(layer, blocks, enable_nested_tensor=False)
        self.head = nn.Linear(dim, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.flatten(1).unflatten(1, (-1, 4))  # (batch, token, 4)
        return self.head(self.encoder(self.embed(tokens)).mean(1))


class Counting(nn.Module):
    """`net`, with the number of its passes and of their images."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.passes, self.images = net, 0, 0

    def forward(self, values: Tensor) -> Tensor:
        self.passes += 1
        self.images += len(values)
        return self.net(values)


class Raising(nn.Module):
    """`net`, until the pass number `at`, which raises in the middle of it."""

    def __init__(self, net: nn.Module, *, at: int):
        super().__init__()
        self.net, self.at, self.passes = net, at, 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        logits = self.net(images)
        if self.passes >= self.at:
            raise RuntimeError("the network broke")
        return logits


def residual_net(seed: int = 0, **settings_: object) -> ResidualNet:
    """A net whose running statistics, weights and biases are all far from their defaults."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        net = ResidualNet(**settings_)
        for bn in (net.bn1, net.bn2):
            bn.running_mean.normal_(0, 0.3)
            bn.running_var.uniform_(0.5, 2)
            nn.init.uniform_(bn.weight, 0.5, 1.5)
            nn.init.normal_(bn.bias, 0, 0.3)
    return net


def mixed_net() -> ResidualNet:
    """In training, with modules and a weight frozen by their owner, a gradient, and a hook of the caller."""
    net = residual_net(dropout=0.3).train()
    net.bn1.eval()
    net.hidden.eval()
    net.conv2.weight.requires_grad_(False)
    net.fc.bias.grad = torch.full((3,), 7.0)
    net.bn2.register_forward_hook(lambda module, inputs, output: None)
    return net


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_images(count: int = 6, *, size: int = 6, channels: int = 1, seed: int = 0, dtype=torch.float32) -> Tensor:
    """(count, channels, size, size) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, size, size, generator=generator, dtype=torch.float64).to(dtype)


def trained_net(images: Tensor, labels: Tensor, *, steps: int = 30) -> nn.Module:
    """A net that has learnt these images, in eval mode: gradients as a real attack meets them."""
    classes, side = int(labels.max()) + 1, images.shape[-1] // 2
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Flatten()),
            *(nn.Linear(8 * side * side, 32), nn.ReLU(inplace=True), nn.Linear(32, classes)),
        )
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    net.zero_grad()
    return net.eval()


def pattern_images(count: int = 200, *, classes: int = 4, size: int = 8) -> tuple[Tensor, Tensor]:
    """Images (count, 1, size, size) in [0, 1] of a few patterns under noise, some pixels at 0 and 1, and labels."""
    generator = torch.Generator().manual_seed(3)
    patterns = torch.rand(classes, 1, size, size, generator=generator)
    labels = torch.arange(count) % classes
    noise = 0.3 * torch.randn(count, 1, size, size, generator=generator)
    return (patterns[labels] + noise).clamp(0, 1), labels
