"""Every objective without and with SNS on digits, paired by seed: the raw rows, and docs/results.md made from them.

    python -m benchmarks.methods select     the stabilizer's settings by validated robust accuracy, seeds 0 to 2
    python -m benchmarks.methods confirm    the defaults of conf/ on the test set, seeds 100 to 104, all objectives
    python -m benchmarks.methods table      docs/results.md from the rows

`select` uses validation images only. Its choice goes into conf/stabilizer/sns.yaml and is committed before `confirm`
uses a test image. A row is appended to benchmarks/results/methods.jsonl when a run starts and when it ends, so that no
started run can be left out; its overrides have the names of settings of its commit. Two runs of one thread each are
active at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.common import RESULTS, ROOT, append, commit, interval

ROWS = RESULTS / "methods.jsonl"
PROCESSES = 2
COMMON = ("data=digits", "model=small_cnn", "logger=csv", "trainer.max_epochs=20", "trainer.accelerator=cpu")
OBJECTIVES = ("natural", "fast", "nfgsm", "free", "pgd", "alp", "trades", "mart", "ensemble_adversarial")
SELECT_SEEDS, CONFIRM_SEEDS, FIXED_SEEDS = range(3), range(100, 105), (1000, 1001)
LAST_EPOCHS = 5  # their mean validated robust accuracy selects: a single epoch of 200 images is noise
CANDIDATES = {
    "none": ["stabilizer=none"],
    **{
        f"weight {weight}, top {top}": [f"stabilizer.weight={weight}", f"stabilizer.top={top}"]
        for weight in (1, 2, 4)
        for top in (0.1, 0.3, 1.0)
    },
    **{
        f"weight 2, top 0.3, {name}": ["stabilizer.weight=2", "stabilizer.top=0.3", *overrides]
        for name, overrides in {
            "refresh average": ["stabilizer.refresh=average"],
            "refresh epoch": ["stabilizer.refresh=epoch"],
            "refresh once": ["stabilizer.refresh=once"],
            "distance l2": ["stabilizer.distance=l2"],
            "distance cosine, feature maps": ["stabilizer.distance=cosine", "stabilizer.layers=[relu1,relu2,relu3]"],
            "no gradient through the clean view": ["stabilizer.gradient_through_clean=false"],
            "batch_norm frozen": ["stabilizer.batch_norm=frozen"],
            "weight ramp of 5 epochs": ["callbacks=[stabilizer_ramp]"],
        }.items()
    },
    "weight 0.01, top 0.3, sum": ["stabilizer.weight=0.01", "stabilizer.top=0.3", "stabilizer.reduction=sum"],
}
Row = Mapping[str, Any]
Rows = Sequence[Row]


# ---------------------------------------------------------------- runs
def select() -> None:
    perform(
        {"stage": "select", "name": name, "seed": seed, "overrides": ["objective=pgd", *overrides]}
        for seed in SELECT_SEEDS
        for name, overrides in CANDIDATES.items()
    )


def confirm() -> None:
    natural = ["objective=natural", "stabilizer=none", "model.width=16"]
    with tempfile.TemporaryDirectory() as folder:
        fixed = {seed: f"{folder}/{seed}" for seed in FIXED_SEEDS}
        perform(
            {"stage": "fixed", "name": f"fixed network {seed}", "seed": seed, "overrides": natural, "directory": place}
            for seed, place in fixed.items()
        )
        checkpoints = ",".join(f"{place}/run/checkpoints/best.ckpt" for place in fixed.values())
        own = {"ensemble_adversarial": [f"train_attack.checkpoints=[{checkpoints}]"]}
        perform(
            {
                "stage": "confirm",
                "name": f"{objective} {stabilizer}",
                "seed": seed,
                "overrides": [f"objective={objective}", f"stabilizer={stabilizer}", *own.get(objective, [])],
            }
            for seed in CONFIRM_SEEDS
            for objective in OBJECTIVES
            for stabilizer in ("none", "sns")
        )


def perform(jobs: Iterable[dict[str, Any]]) -> None:
    """Run the jobs that have no finished row yet."""
    done = {(row["stage"], row["name"], row["seed"]) for row in rows() if row["status"] != "started"}
    missing = [job for job in jobs if "directory" in job or (job["stage"], job["name"], job["seed"]) not in done]
    with ThreadPoolExecutor(PROCESSES) as pool:
        list(pool.map(run, missing))


def run(job: dict[str, Any]) -> None:
    """Run one training in its own process and append its rows."""
    identity = {key: job[key] for key in ("stage", "name", "seed")} | {"commit": commit()}
    append(ROWS, {**identity, "status": "started", "overrides": job["overrides"]})
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(job.get("directory") or folder) / "run"
        overrides = [*COMMON, *job["overrides"], f"seed={job['seed']}", f"hydra.run.dir={directory}"]
        command = [sys.executable, str(ROOT / "train.py"), *overrides]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        if ended.returncode == 0:
            row = {"status": "finished", **results(directory, tests=job["stage"] == "confirm")}
        else:
            row = {"status": "stopped", "reason": (ended.stderr.strip().splitlines() or [str(ended.returncode)])[-1]}
    append(ROWS, {**identity, **row, "seconds": round(time.perf_counter() - started, 1)})


def results(directory: Path, *, tests: bool) -> dict[str, Any]:
    """What is kept of a run; nothing of the test set in the stage that selects."""
    import pandas
    import yaml

    from nsr.run.files import sensitivity_file

    metrics = json.loads((directory / "metrics.json").read_text())
    validated = pandas.read_csv(directory / "metrics.csv")["validation/robust_accuracy"]
    neurons = pandas.read_csv(sensitivity_file(directory))
    neurons = neurons[neurons["epoch"] == metrics["best_epoch"]]
    layers = neurons.groupby("layer", sort=False)[["absolute", "mean_activation"]].mean()
    row = {
        "config": fingerprint(yaml.safe_load((directory / "config.yaml").read_text())),
        "best_epoch": metrics["best_epoch"],
        "validation_last_epochs": fmean(validated[-LAST_EPOCHS:]),
        "validation_best": metrics["validation/robust_accuracy"],
        "sensitivity": {  # of each layer: absolute, relative, mean activation
            layer: [round(value, 6) for value in (absolute, absolute / active if absolute else 0.0, active)]
            for layer, absolute, active in layers.itertuples()
        },
    }
    if tests:
        row |= {key: value for key, value in metrics.items() if key.startswith("test") and key.endswith("accuracy")}
        row["correct_under_pgd"] = bits(pandas.read_csv(directory / "images.csv")["pgd"])
    return row


def fingerprint(settings: dict[str, Any]) -> str:
    """Hash of all settings but the seed."""
    settings = {key: value for key, value in settings.items() if key != "seed"}
    settings["data"] = {key: value for key, value in settings["data"].items() if key != "seed"}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def bits(correct: Sequence[float]) -> str:
    """Which test images are correctly classified, as a hexadecimal number: the first image is its highest bit."""
    return f"{int(''.join(str(int(value)) for value in correct), 2):0{-(-len(correct) // 4)}x}"


# ---------------------------------------------------------------- rows
def rows(path: Path = ROWS) -> list[dict[str, Any]]:
    """One row per started run, its later row merged into the first."""
    latest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        row = json.loads(line)
        key = (row["stage"], row["name"], row["seed"])
        latest[key] = {**latest.get(key, {}), **row}
    return list(latest.values())


def by_seed(all_rows: Rows, stage: str, name: str) -> dict[int, Row]:
    """{seed: the finished run}, in the order of seeds."""
    found = [row for row in all_rows if (row["stage"], row["name"], row["status"]) == (stage, name, "finished")]
    return {row["seed"]: row for row in sorted(found, key=lambda row: row["seed"])}


def without_and_with(all_rows: Rows, objective: str) -> tuple[dict[int, Row], dict[int, Row]]:
    """The runs of an objective without and with SNS, {seed: run}."""
    return by_seed(all_rows, "confirm", f"{objective} none"), by_seed(all_rows, "confirm", f"{objective} sns")


def gains(none: Mapping[int, Row], sns: Mapping[int, Row], key: str) -> list[float]:
    """SNS minus none at the same seed, in percentage points."""
    return [100 * (sns[seed][key] - none[seed][key]) for seed in none if seed in sns]


def paired(none: Mapping[int, Row], sns: Mapping[int, Row], key: str) -> str:
    """The mean difference and its interval as text; nothing for fewer than two pairs."""
    found = gains(none, sns, key)
    images = gained_images(none, sns) if key == "test/pgd_accuracy" else None
    return interval(*common.paired(found, images)) if len(found) > 1 else ""


def gained_images(none: Mapping[int, Row], sns: Mapping[int, Row]) -> np.ndarray | None:
    """(seed, image) SNS minus none under PGD-40, in percentage points; None where images were not kept."""
    pairs = [(sns[seed], none[seed]) for seed in none if seed in sns]
    if not pairs or not all("correct_under_pgd" in row for pair in pairs for row in pair):
        return None
    each = [[[int(flag) for flag in f"{int(row['correct_under_pgd'], 16):0500b}"] for row in pair] for pair in pairs]
    return 100.0 * np.subtract(*np.array(each).swapaxes(0, 1))


def unfinished(all_rows: Rows) -> Iterator[str]:
    odd = [row for row in all_rows if row["status"] != "finished"]
    yield from (f"## Unfinished runs: {len(odd)}", "")
    for row in odd:
        yield f"* {row['stage']}, {row['name']}, seed {row['seed']}: {row.get('reason', 'started, not finished')}"


def write_page() -> None:
    from benchmarks import results_page  # imports this file

    results_page.PAGE.write_text(results_page.page(rows()))


if __name__ == "__main__":
    stages = {"select": select, "confirm": confirm, "table": write_page}
    if len(sys.argv) != 2 or sys.argv[1] not in stages:
        sys.exit(f"{__doc__}\nerror: give one of {', '.join(stages)}")
    stages[sys.argv[1]]()
