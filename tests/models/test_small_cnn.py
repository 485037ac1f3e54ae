"""SmallCNN: shapes at every size it is made for, its layers, its errors, and that it learns real digits."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from nsr.errors import InputError
from nsr.models import SmallCNN


@pytest.mark.parametrize("image_size", [4, 8, 9, 28, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_gives_one_logit_a_class(image_size: int, channels: int) -> None:
    net = SmallCNN(channels=channels, classes=7, image_size=image_size, width=4)
    assert net(torch.rand(2, channels, image_size, image_size)).shape == (2, 7)


def test_parameter_count_from_its_layers() -> None:
    net = SmallCNN(channels=1, classes=10, image_size=8)
    convolutions = 9 * (1 * 32 + 32 * 64 + 64 * 64)
    batch_norms = 2 * (32 + 64 + 64)
    linear = (64 * 2 * 2 + 1) * 128 + (128 + 1) * 10
    assert sum(parameter.numel() for parameter in net.parameters()) == convolutions + batch_norms + linear


def test_every_activation_is_its_own_module_and_not_in_place() -> None:
    net = SmallCNN(channels=1, classes=10, image_size=8)
    activations = {name: module for name, module in net.named_modules() if isinstance(module, nn.ReLU)}
    assert list(activations) == ["relu1", "relu2", "relu3", "relu4"]
    assert not any(module.inplace for module in activations.values())


def test_works_in_float64() -> None:
    net = SmallCNN(channels=1, classes=10, image_size=8, width=4).double()
    logits = net(torch.rand(2, 1, 8, 8, dtype=torch.float64))
    assert logits.dtype == torch.float64
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image_size": 3}, "image_size is 3; it must be a whole number at least 4"),
        ({"image_size": (8, 8)}, r"image_size is \(8, 8\); it must be a whole number"),
        ({"channels": 0}, "channels is 0; it must be a whole number at least 1"),
        ({"classes": 1}, "classes is 1; it must be a whole number at least 2"),
        ({"width": 1.5}, "width is 1.5; it must be a whole number at least 1"),
    ],
)
def test_impossible_sizes_are_refused(changed: dict[str, object], message: str) -> None:
    sizes: dict[str, object] = {"channels": 1, "classes": 10, "image_size": 8}
    with pytest.raises(InputError, match=message):
        SmallCNN(**{**sizes, **changed})  # type: ignore[arg-type]


def test_learns_real_digits() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # (1797, 1, 8, 8)
    labels = torch.tensor(digits.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        order = torch.randperm(len(images))
        train, held_out = order[:1100], order[1100:]
        net = SmallCNN(channels=1, classes=10, image_size=8)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for _ in range(5):
            for batch in train[torch.randperm(len(train))].split(64):
                loss = functional.cross_entropy(net(images[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    with torch.no_grad():
        accuracy = (net.eval()(images[held_out]).argmax(dim=1) == labels[held_out]).double().mean()
    assert accuracy > 0.97
