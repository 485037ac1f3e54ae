"""What pictures are made of: a network, its test images, the attack that was measured on them, and the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nsr.layers import Layer
from nsr.randomness import draw_seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS = 2**17  # of one channel in a batch: bounds the memory of a deep network's features
MOST_IMAGES = 64  # in a batch
PASS = 2e7  # operations that a pass costs beside those of its images


@dataclass(frozen=True)
class Subject:
    """A measured network, in float32 and eval mode where it is used; positions are those in the measured images."""

    net: nn.Module  # images in [0, 1] -> logits
    root: nn.Module  # that the layers' names refer to
    layers: Sequence[Layer]
    device: torch.device
    read: Callable[[int], Tensor]  # position -> (channel, height, width)
    labels: Tensor  # (image,)
    places: Tensor  # (image,): index in the whole test set
    class_names: Sequence[str]
    outcomes: Mapping[str, Tensor]  # {'clean' or row of an attack: (image,) 1 where classified correctly}
    attacks: Mapping[str, Callable[..., Tensor]]  # {row: attack}
    titles: Mapping[str, str]  # {row: name, norm and epsilon}
    sensitivities: Mapping[str, Tensor] = field(default_factory=dict)  # {layer: (neuron,)}; empty: not measured
    measured_on: str = ""  # images and attack of the sensitivities, in words
    seed: int = 0

    def images(self, positions: Sequence[int]) -> Tensor:
        """Return (image, channel, height, width) on the device."""
        return torch.stack([self.read(position) for position in positions]).to(self.device)

    def generators(self, positions: Sequence[int]) -> list[Generator]:
        """Return the generators that the test has given the attack for these images."""
        places = self.places[torch.as_tensor(positions)].tolist()
        return [Generator(self.device).manual_seed(draw_seed(self.seed, 1, place)) for place in places]

    @property
    def batch(self) -> int:
        """The number of images in a batch."""
        height, width = self.read(0).shape[1:]
        return max(1, min(MOST_IMAGES, PIXELS // (height * width)))

    def name(self, label: int) -> str:
        """Return the name of a class."""
        return str(self.class_names[label]) if label < len(self.class_names) else str(label)


@dataclass(frozen=True)
class Picture:
    """A figure of one of the report's sections, with the numbers that it shows."""

    id: str
    section: str
    figure: Figure
    alt: str
    caption: str
    data: Any


def operations(subject: Subject) -> float:
    """Return the floating-point operations of the forward pass of one image, those of convolutions and products."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        subject.net(subject.images([0]))
    return float(counter.get_total_flops())


class OverBudget(Exception):
    """A pass of the network that exceeds the budget."""


@dataclass
class Meter:
    """The floating-point operations of a network's forward passes, as many on a busy machine as on an idle one."""

    image: float  # of one image
    spent: float = 0.0

    def cost(self, images: int) -> float:
        """Return the operations of one pass."""
        return PASS + images * self.image

    @contextmanager
    def limited(self, net: nn.Module, limit: float) -> Iterator[None]:
        """Raise OverBudget at the pass of `net` that takes `spent` beyond the limit, which ends any attack."""

        def count(module: nn.Module, inputs: Any) -> None:
            self.spent += self.cost(len(inputs[0]))
            if self.spent > limit:
                raise OverBudget

        handle = net.register_forward_pre_hook(count)
        try:
            yield
        finally:
            handle.remove()


def parts(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Yield the items in parts of at most this size."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
