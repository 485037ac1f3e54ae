"""Run directories as train.py and evaluate.py write them, with made-up metrics and without training."""

from __future__ import annotations

import functools
import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import yaml
from hydra.core.hydra_config import HydraConfig

from nsr.run.files import SCHEMA, append_rows, write_json

LAYERS = {"relu1": 3, "relu2": 2}  # neurons
COLUMNS = ("epoch", "layer", "neuron", "absolute", "relative", "mean_activation")


@functools.cache
def settings_of(overrides: tuple[str, ...]) -> str:
    from nsr.app.composition import compose_checked, plain, without_hydra

    settings = plain(without_hydra(compose_checked("train", list(overrides))))
    runtime = HydraConfig.get().runtime.choices
    choices = {group: name for group, name in runtime.items() if "@" not in group and not group.startswith("hydra/")}
    return json.dumps({**settings, "schema": SCHEMA, "choices": choices, "overrides": list(overrides)})


def make_run(
    directory: Path,
    *overrides: str,
    seed: int = 0,
    epochs: int = 3,
    best: int = 2,
    accuracies: Mapping[str, float] | None = None,
    level: float = 1.0,
    status: str = "finished",
    reason: str = "",
    process: int | None = None,
    trained: bool | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """Make a run of train.py; best is its best epoch, level a factor of its sensitivities.

    Args:
        status: of status.json; '' for none.
        process: of status.json; None: this one.
        trained: whether its epochs are over; None: those of finished runs.
        changes: of its settings, beside those that overrides can make.
    """
    directory.mkdir(parents=True)
    settings = json.loads(settings_of(("logger=csv", f"trainer.max_epochs={epochs}", *overrides)))
    settings["seed"] = settings["data"]["seed"] = seed
    (directory / "config.yaml").write_text(yaml.safe_dump({**settings, **(changes or {})}, sort_keys=False))
    done = epochs if status == "finished" or trained else 1
    write_records(directory, seed, range(done + 1), best, level)
    if trained or (trained is None and status == "finished"):
        write_json(directory / "timing.json", {"epochs": [1.0] * epochs, "fit": 3.0})
    if status == "finished":
        measured = {"clean": 0.9, "fgsm": 0.6, "pgd": 0.5, **(accuracies or {})}
        tested = {f"test/{name}_accuracy": value for name, value in measured.items()}
        tested["test/worst_case_accuracy"] = min(measured.values())
        write_json(directory / "metrics.json", {"schema": SCHEMA, "best_epoch": best, "last_epoch": epochs, **tested})
    if status:
        origin = {"program": "train.py", "overrides": [*overrides, f"seed={seed}"]}
        origin |= {"process": os.getpid() if process is None else process, "host": socket.gethostname()}
        write_json(directory / "status.json", {"status": status, "reason": reason, **origin})
    return directory


def write_records(directory: Path, seed: int, epochs: Sequence[int], best: int, level: float) -> None:
    draw = numpy.random.default_rng(seed)
    names = ["epoch", "validation/clean_accuracy", "validation/robust_accuracy"]
    for epoch in epochs:
        append_rows(directory / "metrics.csv", names, [[epoch, 0.8, 0.7 if epoch == best else 0.01 * epoch]])
        rows = [
            [epoch, layer, neuron, *(level * draw.random(2)), draw.random()]
            for layer, neurons in LAYERS.items()
            for neuron in range(neurons)
        ]
        append_rows(directory / "sensitivity.csv", COLUMNS, rows)


def make_evaluation(
    run: Path,
    name: str,
    accuracies: Mapping[str, float] | None,
    *,
    checkpoint: str = "best.ckpt",
    n_examples: int | None = None,
    **changes: Any,
) -> Path:
    """Make an evaluation of evaluate.py in RUN/evaluations/NAME; accuracies None: begun and not finished.

    Args:
        changes: of its settings, such as epsilon=0.1; n_examples is one of `evaluation`.
    """
    directory = run / "evaluations" / name
    directory.mkdir(parents=True)
    path = str(run / "checkpoints" / checkpoint)
    if accuracies is None:
        overrides = [f"checkpoint={path}", "test_attacks.pgd.steps=7"]
        # a process that is gone: the largest number that Linux gives is 4194304
        origin = {"program": "evaluate.py", "overrides": overrides, "process": 2**30, "host": socket.gethostname()}
        write_json(directory / "status.json", {"status": "running", **origin})
        (run / "evaluations" / "cache" / "0123456789ab").mkdir(parents=True)
        return directory
    own = yaml.safe_load((run / "config.yaml").read_text())
    known = own["test_attacks"] | {"clean": None}
    others = {
        "_target_": "nsr.attacks.AutoAttack",
        "norm": own["norm"],
        "epsilon": own["epsilon"],
        "version": "standard",
    }
    attacks = {attack_name: known.get(attack_name, others) for attack_name in accuracies}
    evaluation = {"n_examples": n_examples, "subset": "balanced", "cache": None, "list_top": 5}
    settings = {"schema": SCHEMA, "checkpoint": path, "evaluation": evaluation, "test_attacks": attacks}
    settings = {**{key: own[key] for key in ("data", "norm", "epsilon")}, **settings, **changes}
    (directory / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    metrics = {f"test/{attack_name}_accuracy": value for attack_name, value in accuracies.items()}
    metrics["test/worst_case_accuracy"] = min(accuracies.values())
    write_json(directory / "evaluation.json", metrics)
    return directory
