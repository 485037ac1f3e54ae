"""The interventions of an evaluation: halves of the test images, batch by batch, then files, figures and a table."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from nsr.data import ImageData
from nsr.errors import InputError
from nsr.evaluation.report import show
from nsr.interventions.experiment import Interventions
from nsr.interventions.intervene import attacked, check_halves, halves
from nsr.interventions.ranking import Pairs
from nsr.interventions.report import contrasts_table, effects_table, layers_table, write_effects
from nsr.training.module import RobustClassifier


def run_interventions(
    analysis: Interventions,
    module: RobustClassifier,
    data: ImageData,
    directory: Path,
    *,
    settings: Mapping[str, Any],
    device: torch.device,
) -> None:
    """Measures, writes interventions.csv, interventions.json and interventions/ with the figures, shows a table.

    Args:
        module: the network, its taps, and in its suite the attack that sensitivities are measured under.
        data: set up for 'test', and limited.
        directory: of the evaluation.
        settings: of the command, to be kept beside the figures.
        device: to measure on.
    """
    net: Any = module.net.to(device)
    parts = halves(data.test_set.labels, seed=analysis.seed)
    layers = analysis.chosen(module.taps.layers)
    batches = -(-len(parts[1]) // data.evaluation_batch_size)

    def pairs(half: int) -> Iterator[Pairs]:
        attack = module.suite.sensitivity_attack
        assert attack is not None
        for number, (images, labels) in enumerate(data.test_batches(parts[half])):
            images, labels = images.to(device), labels.to(device)
            yield Pairs(images, attacked(net, images, labels, attack, place=(analysis.seed, half, number)), labels)

    try:
        with progress_line("interventions", batches * len(layers) * len(analysis.kinds)) as advance:
            effects = analysis.measure(net, layers, pairs(0), pairs(1), within=net.net, progress=advance)
    except InputError as error:  # the evaluation itself is done
        show(f"interventions  nothing measured: {error}")
        return
    files = write_effects(directory, effects, settings=settings)
    for kind, reason in effects.left_out.items():
        show(f"interventions  no {kind}: {reason}")
    tables = (table(effects, kind) for kind in effects.kinds() for table in (effects_table, contrasts_table))
    show(layers_table(effects), *tables)
    show(f"written to  {', '.join(files)}")


def check_interventions(analysis: Interventions, module: RobustClassifier, images: int | None) -> None:
    """InputError for what can be told before anything is measured.

    Args:
        images: how many test images there will be; None: unknown.
    """
    analysis.chosen(module.taps.layers)
    if images is not None:
        check_halves(images)


@contextmanager
def progress_line(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Gives what is to be called `total` times: a line on a terminal, a row every tenth elsewhere."""
    started, done = time.perf_counter(), 0
    is_terminal = sys.stdout.isatty() and sys.stderr.isatty()
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeRemainingColumn())
    line = Progress(*columns, console=Console(file=sys.stderr), transient=True, disable=not is_terminal)
    task = line.add_task(title, total=total)

    def advance() -> None:
        nonlocal done
        done += 1
        line.advance(task)
        if not is_terminal and (10 * done) // total > (10 * (done - 1)) // total:
            took = time.perf_counter() - started
            left = took / done * (total - done)
            print(f"{title}  {100 * done // total} %  {took:.0f} s, {left:.0f} s left", flush=True)

    with line:
        yield advance
