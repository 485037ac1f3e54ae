"""One cell: a training and its evaluation in child processes, and the row of what they found."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import pandas
import yaml

from benchmarks.evidence.plan import Cell
from nsr.app import main
from nsr.run.files import sensitivity_file

CONTEXT = multiprocessing.get_context("fork")  # a child inherits what this process has imported, 10 s of each run


class CellStopped(Exception):
    """A command of the cell ended with an error; the message is its last line."""


def preload() -> None:
    """Import what the children need."""
    import matplotlib.backends.backend_pdf  # noqa: F401

    import nsr.app.evaluate
    import nsr.app.train  # noqa: F401


def run(cell: Cell, folder: Path, keep: Path | None) -> dict[str, Any]:
    """Train and evaluate in `folder`, which is emptied before and deleted after; return the results.

    Args:
        keep: folder that the best checkpoint is copied to; None: it is deleted.
    Errors:
        CellStopped: a command failed; the folder stays.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started, used = time.perf_counter(), _cpu_seconds()
    training = folder / "train"
    _command("train", (*cell.training, f"seed={cell.seed}", f"hydra.run.dir={training}"), folder)
    row = trained(training) | {"data": data_checksum(training)}
    if (measured := training / "training_seconds.json").exists():  # of the callback of benchmarks/speedrun.py
        row["training_seconds"] = round(json.loads(measured.read_text()), 1)
    row |= {"train_seconds": _since(started), "train_cpu_seconds": round(_cpu_seconds() - used, 2)}
    for name in ("best", "last") if cell.evaluation else ():
        if name == "last" and row["last_epoch"] == row["best_epoch"]:
            row["last"] = "best"  # the same weights
            continue
        checkpoint = f"checkpoint={training / 'checkpoints' / name}.ckpt"
        _command("evaluate", (checkpoint, *cell.evaluation, f"hydra.run.dir={folder / name}"), folder)
        row[name] = evaluated(folder / name)
    if keep is not None and cell.stage == "confirm":
        keep.mkdir(parents=True, exist_ok=True)
        shutil.copy(training / "checkpoints" / "best.ckpt", keep / f"{cell.objective}_{cell.arm}_{cell.seed}.ckpt")
    shutil.rmtree(folder)
    return row | {"seconds": _since(started), "cpu_seconds": round(_cpu_seconds() - used, 2)}


def _command(program: str, overrides: Sequence[str], folder: Path) -> None:
    """Run train.py or evaluate.py in a child process; its output goes to folder/PROGRAM.log."""
    log = folder / f"{program}.log"
    child = CONTEXT.Process(target=_child, args=(program, overrides, log))
    child.start()
    try:
        child.join()
    except BaseException:
        child.terminate()
        child.join()
        raise
    if child.exitcode:
        raise CellStopped((log.read_text().strip().splitlines() or [f"exit code {child.exitcode}"])[-1])


def _child(program: str, overrides: Sequence[str], log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    # the caller's may not be 1 and 2; the command replaces them, and must not close the log with that
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", 1, closefd=False) for stream in (1, 2))
    sys.argv = [f"{program}.py", *overrides]
    getattr(main, program)()


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 1)


def _cpu_seconds() -> float:
    """Return the processor time of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def trained(directory: Path) -> dict[str, Any]:
    """Return what is kept of a training: nothing of the test set."""
    metrics = json.loads((directory / "metrics.json").read_text())
    epochs = pandas.read_csv(directory / "metrics.csv")
    return {
        "config": fingerprint(yaml.safe_load((directory / "config.yaml").read_text())),
        "best_epoch": metrics["best_epoch"],
        "last_epoch": metrics["last_epoch"],
        "validation_clean": epochs["validation/clean_accuracy"].tolist(),  # (epoch,), the first before training
        "validation_robust": epochs["validation/robust_accuracy"].tolist(),
        "validation_sensitivity": layers(sensitivity_file(directory), metrics["best_epoch"]),
    }


def evaluated(directory: Path) -> dict[str, Any]:
    """Return accuracies and the images that are classified correctly, the same images in the same order in each row."""
    metrics = json.loads((directory / "evaluation.json").read_text())
    images = pandas.read_csv(directory / "images.csv")
    attacks = [key[len("test/") : -len("_accuracy")] for key in metrics if key.endswith("_accuracy")]
    return {
        "accuracy": {attack: metrics[f"test/{attack}_accuracy"] for attack in attacks},
        "images": hashlib.sha256(images["image"].to_numpy("int64").tobytes()).hexdigest()[:12],
        "n_images": len(images),
        "correct": {attack: packed(images[attack].to_numpy()) for attack in attacks if attack in images},
        "sensitivity": layers(sensitivity_file(directory)),
    }


def layers(path: Path, epoch: int | None = None) -> dict[str, list[float]]:
    """Return {layer: absolute sensitivity, relative sensitivity, mean activation}, means over its neurons.

    The relative one is the ratio of the layer's sums.
    """
    neurons = pandas.read_csv(path)
    neurons = neurons if epoch is None else neurons[neurons["epoch"] == epoch]
    means = neurons.groupby("layer", sort=False)[["absolute", "mean_activation"]].mean()
    return {
        str(layer): [round(value, 6) for value in (absolute, absolute / active if absolute else 0.0, active)]
        for layer, absolute, active in means.itertuples()
    }


def packed(correct: numpy.ndarray) -> str:
    """Pack flags (image,) as hexadecimal digits: the first image is the highest bit of the first byte."""
    return numpy.packbits(correct.astype(bool)).tobytes().hex()


def unpacked(text: str, count: int) -> numpy.ndarray:
    """Return the flags (image,), 0 or 1, of `packed`."""
    return numpy.unpackbits(numpy.frombuffer(bytes.fromhex(text), numpy.uint8), count=count)


def fingerprint(settings: dict[str, Any]) -> str:
    """Hash all settings but the seed."""
    settings = {key: value for key, value in settings.items() if key != "seed"}
    settings["data"] = {key: value for key, value in settings["data"].items() if key != "seed"}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def data_checksum(directory: Path) -> str:
    """Return SHA-256 over pixels (8 bits) and labels (64 bits) of the training and test images of a run, in order."""
    settings = yaml.safe_load((directory / "config.yaml").read_text())["data"]
    settings = {key: value for key, value in settings.items() if key not in ("seed", "epsilon")}
    text = json.dumps(settings, sort_keys=True)
    if text not in _CHECKSUMS:
        with CONTEXT.Pool(1) as pool:
            _CHECKSUMS[text] = pool.apply(_checksum, (settings,))
    return _CHECKSUMS[text]


_CHECKSUMS: dict[str, str] = {}  # of data settings, in this process


def _checksum(settings: dict[str, Any]) -> str:
    from nsr.app.build import build_data

    data, found = build_data({"data": settings}, splits=("train", "test")), hashlib.sha256()
    for split in ("train", "test"):
        images = data.load(split)
        scaled = images.images if images.images.dtype.itemsize == 1 else (255 * images.images).round()
        found.update(scaled.numpy().astype("uint8").tobytes())
        found.update(images.labels.numpy().astype("int64").tobytes())
    return found.hexdigest()
