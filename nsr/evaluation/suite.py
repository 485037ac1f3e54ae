"""The attacks of an evaluation, each measured alone on every image that is classified correctly without one.

An image counts as robust to an attack where it is classified correctly without and the attack does not change that. No
attack profits from what another has found; the images that are robust to all of them are a row of their own,
`worst_case`. An attack with a method `nearest` also gives each image's distance to the nearest adversarial image.
Batches of images are measured, cached and distributed over processes and shards as units. Draws of nsr's attacks are
seeded by the image's index in the test set: its result does not depend on its batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, distributed, nn
from torchmetrics import Metric

from nsr.errors import check_finite_logits
from nsr.evaluation.cache import ResultCache, batch_fingerprint
from nsr.evaluation.outcomes import WORST, SuiteResult, accuracies, median_distances
from nsr.evaluation.search import Batch, Result, Search, attack_batch, classify, draws
from nsr.features import FeatureExtractor
from nsr.layers import Layer
from nsr.metrics.epoch import flat_values
from nsr.metrics.sensitivity import NetworkSensitivity, network_sums
from nsr.randomness import draw_seed, seeded

Attack = Callable[..., Tensor]
SUMS = ("difference", "activation")
Pieces = dict[int, dict[str, Tensor]]  # {number of a batch: {KIND/ROW: values of its images}}


class AttackSuite:
    """The attacks of a test, and the images that are robust to each.

    Args:
        attacks: {name: attack(net, images, labels, generator=...) -> images}; `generator` is a list of one for each
            image. An attack's `nearest`, where it has one, is called instead, see `nsr.attacks`.
        sensitivity_attack: makes the pairs that sensitivity is measured on, of all images; None: it is not measured.
        probes: {name: probe(net, images, labels, generator=...) -> (image,) flags} for the checks, no rows.
        metrics: {name: torchmetrics Metric of (logits, labels)}, measured without attack and under each one. An image
            that is misclassified without an attack is not attacked: its clean logits count.
        worst_cases: {row of a worst case: the rows that it is over}; None: one, over all.
        seed: of every draw.
        search: how attacks search; None: as written. So it is for a network whose passes differ, which no second pass
            can confirm.
    """

    def __init__(
        self,
        attacks: Mapping[str, Attack],
        *,
        sensitivity_attack: Attack | None = None,
        probes: Mapping[str, Callable[..., Tensor]] | None = None,
        metrics: Mapping[str, Metric] | None = None,
        worst_cases: Mapping[str, Sequence[str]] | None = None,
        seed: int = 0,
        search: Search | None = None,
    ):
        self.search = search
        self.attacks, self.sensitivity_attack, self.seed = dict(attacks), sensitivity_attack, seed
        self.probes, self.extra = dict(probes or {}), dict(metrics or {})
        self.worst_cases = ({WORST: self.names} if attacks else {}) if worst_cases is None else worst_cases
        self.cache: ResultCache | None = None
        self.restarted: Collection[str] = ()  # measurements that are made anew, whatever the cache has
        # called after each batch of a row; seconds are None where the cache had it
        self.finished: Callable[[str, float | None], None] = lambda row, seconds: None
        self.result: SuiteResult  # of the latest test, once there is one
        self._pieces: Pieces = {}
        self._sums: NetworkSensitivity | None = None

    @property
    def names(self) -> list[str]:
        """The rows but for the worst cases."""
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
        self,
        net: nn.Module,
        extractor: FeatureExtractor,
        batch: tuple[Tensor, Tensor],
        *,
        number: int,
        places: Tensor | None = None,
    ) -> None:
        """Measure the `number`-th batch of the test.

        Args:
            places: (image,) index of each image in the whole test set; None: 0, 1, ... in the batch.

        Errors:
            InputError: logits that are not finite.
        """
        images, labels = batch
        places = torch.arange(len(labels)) if places is None else places
        name = batch_fingerprint(number, images, labels) if self.cache else ""

        def generators() -> list[Generator]:
            seeds = (draw_seed(self.seed, 1, place) for place in places.tolist())
            return [Generator(images.device).manual_seed(seed) for seed in seeds]

        searches = self.search is not None and self.attacks and not draws(net, images, labels)
        search = self.search if searches else None
        part = Batch(net, images, labels, places.to(images.device), generators, search)
        cached = partial(self._cached, name, number, images.device)
        keys = ["correct", "prediction", *(["logits"] if self.extra else [])]
        clean = cached("clean", [*keys, "margin"], partial(classify, net, images, labels, part.places))
        rows = {"clean": clean}
        for row, attack in self.attacks.items():
            own = [*keys, "distance"] if hasattr(attack, "nearest") else keys
            rows[row] = cached(row, own, partial(attack_batch, attack, part, clean))
        for row, probe in self.probes.items():
            rows[row] = cached(row, ["correct"], partial(_probe, probe, part))
        piece = {f"{kind}/{row}": values.cpu() for row, result in rows.items() for kind, values in result.items()}
        self._pieces[number] = piece | {"labels": labels.cpu(), "places": places.cpu()}
        if self.sensitivity_attack is not None and self._sums is not None:
            sums = cached("sensitivity", SUMS, partial(_sensitivity, self.sensitivity_attack, part, extractor))
            self._sums.update(sums["difference"].double(), sums["activation"].double(), len(labels))

    def _cached(
        self,
        batch: str,
        number: int,
        device: torch.device,
        row: str,
        keys: Sequence[str],
        measure: Callable[[], Result],
    ) -> Result:
        """Return a batch's result, rounded as in the cache: read from there, else measured and cached."""
        saved = self.cache.read(row, batch) if self.cache and row not in self.restarted else None
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

    def partial_result(self) -> dict[str, Any]:
        """Return the measured batches of all processes and their sums, for `add` of another suite; tensors alone."""
        pieces, sums = _all_pieces(self._pieces), {}
        if self._sums is not None:
            with self._sums.sync_context():
                sums = {name: getattr(self._sums, name).cpu().clone() for name in (*SUMS, "count")}
        return {"pieces": pieces, "sums": sums}

    def add(self, partial_results: Iterable[Mapping[str, Any]]) -> None:
        """Take batches that other suites have measured; after `start`, before `finish`."""
        for part in partial_results:
            self._pieces |= part["pieces"]
            if self._sums is not None:
                difference, activation = (part["sums"][name].to(self._sums.device) for name in SUMS)
                self._sums.update(difference, activation, int(part["sums"]["count"]))

    def finish(self) -> SuiteResult:
        """Combine the batches of all processes into `result`."""
        pieces = _all_pieces(self._pieces)
        names = next(iter(pieces.values()))
        together = {name: torch.cat([piece[name] for _, piece in sorted(pieces.items())]) for name in names}
        outcomes = {row: together[f"correct/{row}"].to(torch.uint8) for row in [*self.names, *self.probes]}
        rows = {row: outcomes[row] for row in self.names}
        distances = {row: together[f"distance/{row}"] for row in self.names if f"distance/{row}" in together}
        own = {
            f"{row}_{name}": metric.clone().cpu()(together[f"logits/{row}"], together["labels"])
            for name, metric in self.extra.items()
            for row in self.names
        }
        self.result = SuiteResult(
            outcomes=rows,
            predictions={row: together[f"prediction/{row}"] for row in self.names},
            margins=together["margin/clean"],
            labels=together["labels"],
            places=together["places"],
            distances=distances,
            probed={probe: outcomes[probe] for probe in self.probes},
            # the user's own last: {ROW_METRIC: value}
            metrics=accuracies(rows, self.worst_cases) | median_distances(distances) | flat_values(own),
            sensitivities={} if self._sums is None else self._sums.compute(),
        )
        return self.result


def _probe(probe: Attack, batch: Batch) -> Result:
    return {"correct": probe(batch.net, batch.images, batch.labels, generator=batch.generators())}


def _sensitivity(attack: Attack, batch: Batch, extractor: FeatureExtractor) -> Result:
    with nullcontext() if batch.search is None else batch.search.passes(batch.net):
        adversarial = attack(batch.net, batch.images, batch.labels, generator=batch.generators())
    with torch.no_grad():
        (_, clean), (logits, features) = extractor(batch.images), extractor(adversarial)
    check_finite_logits(logits, places=batch.places)
    sums = network_sums(extractor.layers, clean, features)
    return dict(zip(SUMS, sums, strict=True))


def _plain(values: Tensor) -> Any:
    """Return a text of 0 and 1 for flags, a list of numbers for others."""
    return "".join("01"[flag] for flag in values.tolist()) if values.dtype == torch.bool else values.tolist()


def _tensor(plain: Any, device: torch.device) -> Tensor:
    return torch.tensor([flag == "1" for flag in plain] if isinstance(plain, str) else plain, device=device)


def _all_pieces(pieces: Pieces) -> Pieces:
    """Return the batches of all processes."""
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        gathered: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(gathered, pieces)
        return {number: piece for part in gathered for number, piece in part.items()}
    return pieces
