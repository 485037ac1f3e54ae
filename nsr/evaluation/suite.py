"""The attacks of an evaluation, each measured alone on every image that is classified correctly without one.

An image counts as robust to an attack where it is classified correctly without and the attack does not change that. No
attack profits from what another has found; the images that are robust to all of them are a row of their own,
`worst_case`. Batches of images are measured, cached and distributed over processes as units: the results of a batch
depend on its number alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Generator, Tensor, distributed, nn
from torchmetrics import Metric

from nsr.errors import check_finite_logits
from nsr.evaluation.cache import ResultCache, batch_fingerprint
from nsr.features import FeatureExtractor
from nsr.layers import Layer
from nsr.metrics.epoch import flat_values
from nsr.metrics.sensitivity import LayerSensitivity, NetworkSensitivity, network_sums
from nsr.randomness import draw_seed, seeded

Attack = Callable[..., Tensor]
CURVE = "curve_x"  # prefix of rows at other radii than the threat model's: no part of the worst case
SUMS = ("difference", "activation")
# of a batch: correct (image,) bool, logits (image, class) where the user's own metrics need them; or SUMS (neuron,)
Result = dict[str, Tensor]
Measure = Callable[[], Result]
Pieces = dict[int, dict[str, Tensor]]  # {number of a batch: {row: values of its images}}


class AttackSuite:
    """The attacks of a test, and the images that are robust to each.

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
        # called after each batch of a row; seconds are None where the cache had it
        self.finished: Callable[[str, float | None], None] = lambda row, seconds: None
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
        """The measurements of each batch: rows, probes and sensitivity."""
        return [*self.names, *self.probes, *(["sensitivity"] if self.sensitivity_attack is not None else [])]

    def start(self, layers: Sequence[Layer], device: torch.device) -> None:
        """Empty the results."""
        self._pieces = {}
        self._sums = None if self.sensitivity_attack is None else NetworkSensitivity(layers).to(device)

    def measure(
        self, net: nn.Module, extractor: FeatureExtractor, batch: tuple[Tensor, Tensor], *, number: int, first: int = 0
    ) -> None:
        """Measure the `number`-th batch of the whole test set, whose images begin with that of index `first`.

        Errors:
            InputError: logits that are not finite.
        """
        images, labels = batch
        name = batch_fingerprint(number, images, labels) if self.cache else ""
        places = first + torch.arange(len(labels), device=images.device)
        keys = ("correct", "logits") if self.extra else ("correct",)

        def generator() -> Generator:
            return Generator(images.device).manual_seed(draw_seed(self.seed, 1, number))

        cached = partial(self._cached, name, number, images.device)
        rows = {"clean": cached("clean", keys, partial(_classify, net, images, labels, places))}
        for row, attack in self.attacks.items():
            measure = partial(_attack, attack, net, images, labels, places, rows["clean"], generator())
            rows[row] = cached(row, keys, measure)
        flags = {row: result["correct"] for row, result in rows.items()}
        for row, probe in self.probes.items():
            measure = partial(_probe, probe, net, images, labels, generator())
            flags[row] = cached(row, ["correct"], measure)["correct"]
        piece = {row: values.to(torch.uint8) for row, values in flags.items()}
        if self.extra:
            piece |= {f"logits/{row}": result["logits"] for row, result in rows.items()} | {"labels": labels}
        self._pieces[number] = {row: values.cpu() for row, values in piece.items()}
        if self.sensitivity_attack is not None and self._sums is not None:
            measure = partial(
                _sensitivity, self.sensitivity_attack, net, images, labels, places, extractor, generator()
            )
            sums = cached("sensitivity", SUMS, measure)
            self._sums.update(sums["difference"].double(), sums["activation"].double(), len(labels))

    def _cached(
        self,
        batch: str,
        number: int,
        device: torch.device,
        row: str,
        keys: Sequence[str],
        measure: Measure,
    ) -> Result:
        """Return a batch's result, rounded as in the cache: read from there, else measured and cached."""
        saved = self.cache.read(row, batch) if self.cache else None
        seconds = None
        if saved is None or any(key not in saved for key in keys):
            started = time.perf_counter()
            seed = draw_seed(self.seed, 2, number)
            with seeded(seed):  # for networks that draw: the same for any row
                torch.manual_seed(seed)  # of the accelerators too
                measured = measure()
            saved = {key: _plain(measured[key]) for key in keys}
            if self.cache:
                self.cache.write(row, batch, saved)
            seconds = time.perf_counter() - started
        self.finished(row, seconds)
        return {key: _tensor(saved[key], device) for key in keys}

    def finish(self) -> None:
        """Combine the batches of all processes into `outcomes`, `probed`, `metrics` and `sensitivities`."""
        pieces = all_pieces(self._pieces)
        together = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        self.outcomes = {name: together[name] for name in self.names}
        self.probed = {name: together[name] for name in self.probes}
        self.sensitivities = {} if self._sums is None else self._sums.compute()
        own = {
            f"{row}_{name}": metric.clone().cpu()(together[f"logits/{row}"], together["labels"])
            for name, metric in self.extra.items()
            for row in self.names
        }
        self.metrics = accuracies(self.outcomes) | flat_values(own)  # the user's own: {ROW_METRIC: value}


def _classify(net: nn.Module, images: Tensor, labels: Tensor, places: Tensor) -> Result:
    with torch.no_grad():
        logits = net(images)
    check_finite_logits(logits, places=places)
    return {"correct": logits.argmax(1) == labels, "logits": logits}


def _attack(
    attack: Attack,
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    places: Tensor,
    clean: Result,
    generator: Generator,
) -> Result:
    """Attack the images that are classified correctly without an attack; the others keep their clean result."""
    chosen = clean["correct"].nonzero()[:, 0]
    result = {key: values.clone() for key, values in clean.items()}
    if len(chosen):
        adversarial = attack(net, images[chosen], labels[chosen], generator=generator)
        found = _classify(net, adversarial, labels[chosen], places[chosen])
        for key, values in result.items():
            values[chosen] = found[key].to(values.dtype)
    return result


def _probe(probe: Attack, net: nn.Module, images: Tensor, labels: Tensor, generator: Generator) -> Result:
    return {"correct": probe(net, images, labels, generator=generator)}


def _sensitivity(
    attack: Attack,
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    places: Tensor,
    extractor: FeatureExtractor,
    generator: Generator,
) -> Result:
    adversarial = attack(net, images, labels, generator=generator)
    with torch.no_grad():
        (_, clean), (logits, features) = extractor(images), extractor(adversarial)
    check_finite_logits(logits, places=places)
    sums = network_sums(extractor.layers, clean, features)
    return dict(zip(SUMS, sums, strict=True))


def _plain(values: Tensor) -> Any:
    """Return a text of 0 and 1 for flags, a list of numbers for others."""
    return "".join("01"[flag] for flag in values.tolist()) if values.dtype == torch.bool else values.tolist()


def _tensor(plain: Any, device: torch.device) -> Tensor:
    return torch.tensor([flag == "1" for flag in plain] if isinstance(plain, str) else plain, device=device)


def wilson(correct: int, images: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval (Wilson 1927) of a fraction: over other images like these, not over seeds."""
    interval = binomtest(correct, images).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def accuracies(outcomes: Mapping[str, Tensor]) -> dict[str, float]:
    """Return {NAME_accuracy: fraction, NAME_low and NAME_high: its 95 % Wilson interval}, worst_case last.

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


def with_interval(metrics: Mapping[str, float], name: str) -> list[float]:
    """Return NAME_accuracy and its interval, NAME_low and NAME_high."""
    return [metrics[f"{name}_{part}"] for part in ("accuracy", "low", "high")]


def all_pieces(pieces: Pieces) -> list[dict[str, Tensor]]:
    """Return the batches of all processes, in their order in the test set."""
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        gathered: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(gathered, pieces)
        pieces = {number: piece for part in gathered for number, piece in part.items()}
    return [pieces[number] for number in sorted(pieces)]
