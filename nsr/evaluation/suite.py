"""The attacks of an evaluation, each measured alone on every image that is classified correctly without one.

An image counts as robust to an attack where it is classified correctly without and the attack does not change that. No
attack profits from what another has found; the images that are robust to all of them are a row of their own,
`worst_case`. Batches of images are what is finished, cached and dealt out to processes: the results of a batch depend
on its number alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, distributed, nn
from torchmetrics import Metric

from nsr.evaluation.cache import ResultCache
from nsr.evaluation.intervals import wilson
from nsr.features import FeatureExtractor
from nsr.layers import Layer
from nsr.metrics.epoch import flat_values
from nsr.metrics.sensitivity import LayerSensitivity, NetworkSensitivity, network_sums
from nsr.randomness import draw_seed

Attack = Callable[..., Tensor]
CURVE = "curve_x"  # prefix of rows at other radii than the threat model's: no part of the worst case
Pieces = dict[int, dict[str, Tensor]]  # {number of a batch: {row: values of its images}}


class Outcome(NamedTuple):
    """One row of a batch."""

    correct: Tensor  # (image,) bool
    logits: Tensor | None = None  # (image, class), where the user's own metrics need them


class AttackSuite:
    """Which images are robust to which attack.

    Args:
        attacks: {name: attack(net, images, labels, generator=...) -> images}.
        sensitivity_attack: makes the pairs that sensitivity is measured on, of all images; None: it is not measured.
        probes: {name: probe(net, images, labels, generator=...) -> (image,) flags} for the checks, no rows.
        metrics: {name: torchmetrics Metric of (logits, labels)}, measured without attack and under each one. An image
            that is misclassified without an attack is not attacked: its clean logits count.
        seed: of every draw.
    """

    def __init__(
        self,
        attacks: Mapping[str, Attack],
        *,
        sensitivity_attack: Attack | None = None,
        probes: Mapping[str, Callable[..., Tensor]] | None = None,
        metrics: Mapping[str, Metric] | None = None,
        seed: int = 0,
    ):
        self.attacks, self.sensitivity_attack, self.seed = dict(attacks), sensitivity_attack, seed
        self.probes, self.extra = dict(probes or {}), dict(metrics or {})
        self.cache: ResultCache | None = None
        self.finished: Callable[[str, float | None], None] = lambda row, seconds: (
            None
        )  # called after each batch of a row
        self.outcomes: dict[str, Tensor] = {}  # {row: (image,) uint8, 1 where the image is classified correctly}
        self.probed: dict[str, Tensor] = {}  # {probe: (image,) uint8}
        self.metrics: dict[str, float] = {}
        self.sensitivities: dict[str, LayerSensitivity] = {}
        self._pieces: Pieces = {}
        self._sums: NetworkSensitivity | None = None

    @property
    def names(self) -> list[str]:
        """The rows but for the worst case."""
        return ["clean", *self.attacks]

    @property
    def work(self) -> list[str]:
        """What is measured of each batch: rows, probes and sensitivity."""
        return [*self.names, *self.probes, *(["sensitivity"] if self.sensitivity_attack is not None else [])]

    def start(self, layers: Sequence[Layer], device: torch.device) -> None:
        """Empty the results."""
        self._pieces = {}
        self._sums = None if self.sensitivity_attack is None else NetworkSensitivity(layers).to(device)

    def measure(
        self, net: nn.Module, extractor: FeatureExtractor, batch: tuple[Tensor, Tensor], *, number: int
    ) -> None:
        """Measure the `number`-th batch of the whole test set."""
        images, labels = batch

        def clean() -> Outcome:
            with torch.no_grad():
                logits = net(images)
            return Outcome(logits.argmax(1) == labels, logits if self.extra else None)

        rows = {"clean": self._cached("clean", number, clean, images.device)}
        for name, attack in self.attacks.items():

            def attacked(attack: Attack = attack) -> Outcome:
                return self._attacked(net, images, labels, attack, rows["clean"], number)

            rows[name] = self._cached(name, number, attacked, images.device)
        for name, probe in self.probes.items():

            def probed(probe: Callable[..., Tensor] = probe) -> Outcome:
                return Outcome(probe(net, images, labels, generator=self._generator(images, number)))

            rows[name] = self._cached(name, number, probed, images.device)
        piece = {name: row.correct.to(torch.uint8) for name, row in rows.items()}
        if self.extra:
            piece |= {f"logits/{name}": rows[name].logits for name in self.names}  # type: ignore[misc]
            piece["labels"] = labels
        self._pieces[number] = {name: values.cpu() for name, values in piece.items()}
        if self.sensitivity_attack is not None:
            self._measure_sensitivity(net, extractor, images, labels, number)

    def _attacked(
        self, net: nn.Module, images: Tensor, labels: Tensor, attack: Attack, clean: Outcome, number: int
    ) -> Outcome:
        """The outcome of an attack on the images that are classified correctly without one."""
        chosen = clean.correct.nonzero()[:, 0]
        correct, found = clean.correct.clone(), None if clean.logits is None else clean.logits.clone()
        if len(chosen):
            adversarial = attack(net, images[chosen], labels[chosen], generator=self._generator(images, number))
            with torch.no_grad():
                logits = net(adversarial)
            correct[chosen] = logits.argmax(1) == labels[chosen]
            if found is not None:
                found[chosen] = logits
        return Outcome(correct, found)

    def _measure_sensitivity(
        self, net: nn.Module, extractor: FeatureExtractor, images: Tensor, labels: Tensor, number: int
    ) -> None:
        assert self.sensitivity_attack is not None
        assert self._sums is not None
        saved = self.cache.read("sensitivity", number) if self.cache else None
        started = time.perf_counter() if saved is None else None
        if saved is None:
            adversarial = self.sensitivity_attack(net, images, labels, generator=self._generator(images, number))
            with torch.no_grad():
                sums = network_sums(extractor.layers, extractor(images)[1], extractor(adversarial)[1])
            saved = dict(zip(("difference", "activation"), (values.tolist() for values in sums), strict=True))
            if self.cache:
                self.cache.write("sensitivity", number, saved)
        self.finished("sensitivity", None if started is None else time.perf_counter() - started)
        difference, activation = (torch.tensor(values, device=images.device).double() for values in saved.values())
        self._sums.update(difference, activation, len(labels))

    def finish(self) -> None:
        """Combine the batches of all processes into `outcomes`, `probed`, `metrics` and `sensitivities`."""
        pieces = all_pieces(self._pieces)
        together = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        self.outcomes = {name: together[name] for name in self.names}
        self.probed = {name: together[name] for name in self.probes}
        self.sensitivities = {} if self._sums is None else self._sums.compute()
        self.metrics = accuracies(self.outcomes) | self._extra(together)

    def _extra(self, together: Mapping[str, Tensor]) -> dict[str, float]:
        """{ROW_METRIC: value} of the user's own metrics, over all images at once."""
        values = {}
        for name, metric in self.extra.items():
            for row in self.names:
                fresh = metric.clone().cpu()
                values[f"{row}_{name}"] = fresh(together[f"logits/{row}"], together["labels"])
        return flat_values(values)

    def _generator(self, images: Tensor, number: int) -> Generator:
        return Generator(images.device).manual_seed(draw_seed(self.seed, 1, number))

    def _cached(self, name: str, number: int, measure: Callable[[], Outcome], device: torch.device) -> Outcome:
        """The outcome of a batch: from the cache, else measured and cached."""
        saved = self.cache.read(name, number) if self.cache else None
        needs_logits = bool(self.extra) and name in self.names
        if saved is not None and ("logits" in saved) >= needs_logits:
            self.finished(name, None)
            logits = torch.tensor(saved["logits"], device=device) if needs_logits else None
            return Outcome(torch.tensor([flag == "1" for flag in saved["correct"]], device=device), logits)
        started = time.perf_counter()
        torch.manual_seed(draw_seed(self.seed, 2, number))  # for networks that draw: the same draws for any row
        outcome = measure()
        if self.cache:
            content: dict[str, Any] = {"correct": "".join("1" if flag else "0" for flag in outcome.correct.tolist())}
            if outcome.logits is not None:
                content["logits"] = outcome.logits.tolist()
            self.cache.write(name, number, content)
        self.finished(name, time.perf_counter() - started)
        return outcome


def accuracies(outcomes: Mapping[str, Tensor]) -> dict[str, float]:
    """{NAME_accuracy: fraction of the images, NAME_low and NAME_high: its 95 % Wilson interval}, worst_case last.

    Args:
        outcomes: {row: (image,) 1 where the image is classified correctly}.
    """
    threat_model = [flags for name, flags in outcomes.items() if not name.startswith(CURVE)]
    found: dict[str, float] = {}
    for name, flags in {**outcomes, "worst_case": torch.stack(threat_model).amin(0)}.items():
        correct, images = int(flags.sum()), len(flags)
        low, high = wilson(correct, images)
        found |= {f"{name}_accuracy": correct / images, f"{name}_low": low, f"{name}_high": high}
    return found


def all_pieces(pieces: Pieces) -> list[dict[str, Tensor]]:
    """The batches of all processes, in their order in the test set."""
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        gathered: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(gathered, pieces)
        pieces = {number: piece for part in gathered for number, piece in part.items()}
    return [pieces[number] for number in sorted(pieces)]
