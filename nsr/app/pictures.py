"""The pictures after a final evaluation, which cost the run nothing where they fail."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from pytorch_lightning.loggers import Logger

from nsr import loggers
from nsr.app.job import Job
from nsr.errors import one_line
from nsr.evaluation.report import titles
from nsr.pictures import Subject, make_pictures, strongest_first, write_pictures
from nsr.plots import accuracy_by_epsilon, class_accuracy, confusion_matrix, training_curves
from nsr.plots.style import png
from nsr.report.sections.robustness import by_class
from nsr.run.files import layer_neurons, sensitivity_file
from nsr.run.plain_text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


def write_or_warn(job: Job, directory: Path, device: torch.device, *, epoch: int | None = None) -> dict[str, Path]:
    """Write DIRECTORY/pictures with the network as it is and the attack that was measured; return {SECTION/ID: path}.

    Where that fails, or memory does not suffice, one line is logged and nothing is written.

    Args:
        device: to run on.
        epoch: of the network, whose sensitivities are in sensitivity.csv; None: the evaluation has measured them.
    """
    if not job.settings["pictures"]:
        return {}
    try:
        return write_pictures(directory, make_pictures(subject(job, directory, device, epoch)))
    except Exception as error:
        log.warning(f"no pictures: {type(error).__name__}: {printable(one_line(error))}")
        return {}


def log_pictures(made: Sequence[Logger], pictures: Mapping[str, Path], job: Job, directory: Path, *, step: int) -> None:
    """Log the pictures, and plots of the training, the test and the interventions, to the dashboards."""
    if not pictures or not any(map(loggers.shows_pictures, made)):
        return
    analysed = {f"interventions/{path.stem}": path for path in sorted((directory / "interventions").glob("*.png"))}
    for name, path in {**pictures, **analysed}.items():
        loggers.log_picture(made, name, path, step=step)
    try:
        with TemporaryDirectory() as folder:
            for name, figure in summary_plots(job, directory):
                path = Path(folder) / f"{name.replace('/', '_')}.png"
                path.write_bytes(png(figure))
                loggers.log_picture(made, name, path, step=step)
    except Exception as error:
        log.warning(f"no plots on the dashboard: {type(error).__name__}: {printable(one_line(error))}")


def summary_plots(job: Job, directory: Path) -> Iterator[tuple[str, Figure]]:
    """Yield (name on a dashboard, figure) of a finished training or evaluation."""
    import pandas

    result, shown = job.suite.result, titles(job.settings, job.suite, of="epsilon ")
    if (path := directory / "metrics.csv").exists():
        yield "training/accuracy", training_curves(pandas.read_csv(path), title="accuracy of each epoch")
    if (path := directory / "curve.csv").exists():
        attack = (job.settings["test_attacks"].get("curve") or {}).get("attack") or {}
        norm = str(attack.get("norm") or job.settings["norm"])
        title = f"accuracy by epsilon, {len(result.labels):,} test images"
        yield "test/accuracy_by_epsilon", accuracy_by_epsilon(pandas.read_csv(path), norm=norm, title=title)
    attacks = [row for row in strongest_first(result.outcomes) if row in job.suite.attacks]
    for row in attacks[:1]:
        title = f"{shown.get(row, row)}, {len(result.labels):,} test images"
        names = [printable(name) for name in job.description.class_names]
        matrix = confusion_matrix(result.labels, result.predictions[row], class_names=names, title=title)
        yield "test/confusion_matrix", matrix
        classes = by_class(pandas.read_csv(directory / "images.csv", converters={"class": printable}), row)
        yield "test/class_accuracy", class_accuracy(classes, attack=shown.get(row, row), title=title)


def subject(job: Job, directory: Path, device: torch.device, epoch: int | None) -> Subject:
    """Return the measured network with its test images, attacks and result."""
    net, data, suite = job.module.net.to(device), job.data, job.suite
    result = suite.result
    if epoch is None:
        sensitivities = {layer: each.absolute for layer, each in result.sensitivities.items()}
        measured_on = f"{len(result.labels):,} test images"
    else:
        neurons = layer_neurons(sensitivity_file(directory), epoch)
        sensitivities = {layer: torch.tensor(own, dtype=torch.float64)[:, 0] for layer, own in neurons.items()}
        measured_on = f"the validation images, epoch {epoch}"
    return Subject(
        net=net,
        root=net.net,  # type: ignore[arg-type]
        layers=job.module.extractor.layers,
        device=device,
        read=lambda position: data.test_set[position][0],
        labels=result.labels,
        places=result.places,
        class_names=job.description.class_names,
        outcomes=result.outcomes,
        attacks=suite.attacks,
        titles=titles(job.settings, suite, of="epsilon "),
        sensitivities=sensitivities,
        measured_on=measured_on,
        seed=suite.seed,
    )
