"""The attacks of an evaluation, each measured alone on every image that is right without one.

An image counts as right under an attack where it is right without and the attack does not fool the network. No attack
profits from what another has found; the images that withstand all of them are a row of their own, `worst_case`.
Chunks of images are what is finished, kept and dealt out to processes: a chunk's figures depend on its number alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn

from nsr.evaluation.cache import Chunks
from nsr.evaluation.intervals import wilson
from nsr.metrics.sensitivity import network_sums
from nsr.randomness import draw_seed

Attack = Callable[..., Tensor]
BESIDE = "curve_x"  # rows of other radii than the threat model's: no part of the worst case


class Suite:
    """What is right under which attack, image by image.

    Args:
        attacks: {name: attack(net, images, labels, generator=...) -> images}.
        sensitivity_attack: makes the pairs that sensitivity is measured on, of all images; None: it is not measured.
        probes: {name: probe(net, images, labels, generator=...) -> (image,) flags} that alarms look at, no rows.
        seed: of every draw.
    """

    def __init__(
        self,
        attacks: Mapping[str, Attack],
        *,
        sensitivity_attack: Attack | None = None,
        probes: Mapping[str, Callable[..., Tensor]] | None = None,
        seed: int = 0,
    ):
        self.probes = dict(probes or {})
        self.probed: dict[str, Tensor] = {}
        self.attacks, self.sensitivity_attack, self.seed = dict(attacks), sensitivity_attack, seed
        self.chunks: Chunks | None = None
        self.finished: Callable[[str, float | None], None] = lambda row, seconds: None  # told of each chunk of a row
        self.outcomes: dict[str, Tensor] = {}

    @property
    def names(self) -> list[str]:
        """The rows, but for the worst case."""
        return ["clean", *self.attacks]

    @property
    def work(self) -> list[str]:
        """What is measured of each chunk: rows, probes and sensitivity."""
        return [*self.names, *self.probes, *(["sensitivity"] if self.sensitivity_attack is not None else [])]

    def start(self, images: int, device: torch.device) -> None:
        """Empties the results; `images` is how many there are, over all processes."""
        self.outcomes = {name: torch.zeros(images, dtype=torch.uint8, device=device) for name in self.names}
        self.probed = {name: torch.zeros(images, dtype=torch.uint8, device=device) for name in self.probes}

    def measure(self, net: nn.Module, images: Tensor, labels: Tensor, *, number: int, first: int) -> None:
        """Measures a chunk: the `number`-th, whose first image is image `first` of all."""
        here = slice(first, first + len(labels))

        def clean() -> Tensor:
            with torch.no_grad():
                return net(images).argmax(1) == labels

        right = self._finished("clean", number, clean, images.device)
        self.outcomes["clean"][here] = right
        for name, attack in self.attacks.items():

            def attacked(attack: Attack = attack) -> Tensor:
                chosen = right.nonzero()[:, 0]
                withstood = right.clone()
                if len(chosen):
                    generator = Generator(images.device).manual_seed(draw_seed(self.seed, 1, number))
                    adversarial = attack(net, images[chosen], labels[chosen], generator=generator)
                    with torch.no_grad():
                        withstood[chosen] = net(adversarial).argmax(1) == labels[chosen]
                return withstood

            self.outcomes[name][here] = self._finished(name, number, attacked, images.device)
        for name, probe in self.probes.items():

            def probed(probe: Callable[..., Tensor] = probe) -> Tensor:
                generator = Generator(images.device).manual_seed(draw_seed(self.seed, 1, number))
                return probe(net, images, labels, generator=generator)

            self.probed[name][here] = self._finished(name, number, probed, images.device)

    def sensitivity(
        self, net: nn.Module, taps: Any, images: Tensor, labels: Tensor, *, number: int
    ) -> tuple[Tensor, Tensor, int]:
        """The chunk's sums of movement and activation, (neuron of any layer,) float64, and its images."""
        assert self.sensitivity_attack is not None
        kept = self.chunks.read("sensitivity", number) if self.chunks else None
        started = time.perf_counter() if kept is None else None
        if kept is None:
            generator = Generator(images.device).manual_seed(draw_seed(self.seed, 1, number))
            adversarial = self.sensitivity_attack(net, images, labels, generator=generator)
            with torch.no_grad():
                movement, activation = network_sums(taps.layers, taps(images)[1], taps(adversarial)[1])
            kept = {"movement": movement.tolist(), "activation": activation.tolist()}
            if self.chunks:
                self.chunks.write("sensitivity", number, kept)
        self.finished("sensitivity", None if started is None else time.perf_counter() - started)
        sums = (
            torch.tensor(kept[name], dtype=torch.float64, device=images.device) for name in ("movement", "activation")
        )
        return *sums, len(labels)  # type: ignore[return-value]

    def figures(self) -> dict[str, float]:
        """{NAME_accuracy: share of all images, NAME_low and NAME_high: its 95 % Wilson interval}, worst_case last."""
        model = [flags for name, flags in self.outcomes.items() if not name.startswith(BESIDE)]
        rows = {**self.outcomes, "worst_case": torch.stack(model).amin(0)}
        figures: dict[str, float] = {}
        for name, flags in rows.items():
            right, images = int(flags.sum()), len(flags)
            low, high = wilson(right, images)
            figures |= {f"{name}_accuracy": right / images, f"{name}_low": low, f"{name}_high": high}
        return figures

    def _finished(self, name: str, number: int, measure: Callable[[], Tensor], device: torch.device) -> Tensor:
        """The chunk's flags (image,): those kept, else measured and kept."""
        kept = self.chunks.read(name, number) if self.chunks else None
        if kept is not None:
            self.finished(name, None)
            return torch.tensor([flag == "1" for flag in kept], device=device)
        started = time.perf_counter()
        torch.manual_seed(draw_seed(self.seed, 2, number))  # for networks that draw: the same draws for any row
        flags = measure()
        if self.chunks:
            self.chunks.write(name, number, "".join("1" if flag else "0" for flag in flags.tolist()))
        self.finished(name, time.perf_counter() - started)
        return flags
