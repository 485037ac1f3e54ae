"""Every objective without and with SNS on digits, paired by seed: the raw rows, and docs/results.md made from them.

    python -m benchmarks.methods select     the stabiliser's settings by validated robust accuracy, seeds 0 to 2
    python -m benchmarks.methods confirm    the defaults of conf/ on the test set, seeds 100 to 104, all objectives
    python -m benchmarks.methods table      docs/results.md from the rows

`select` looks at validation alone. Its choice goes into conf/stabilizer/sns.yaml and is committed before `confirm`
sees a test image. Rows are appended to benchmarks/results/methods.jsonl: one when a run starts and one when it ends, so
that no started run can be left out. Runs go on in two processes of one thread each.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "benchmarks" / "results" / "methods.jsonl"
TABLE = ROOT / "docs" / "results.md"
PROCESSES = 2
COMMON = ("data=digits", "model=small_cnn", "logger=csv", "trainer.max_epochs=20", "trainer.accelerator=cpu")
OBJECTIVES = ("natural", "fast", "nfgsm", "free", "pgd", "alp", "trades", "mart", "eat")
SELECT_SEEDS, CONFIRM_SEEDS, FIXED_SEEDS = range(3), range(100, 105), (1000, 1001)
LAST_EPOCHS = 5  # whose validated robust accuracy, in the mean, selects: a single epoch of 200 images is noise
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
            "no gradient through the clean side": ["stabilizer.gradient_through_clean=false"],
            "batch_norm frozen": ["stabilizer.batch_norm=frozen"],
            "weight ramp of 5 epochs": ["callbacks=[stabilizer_ramp]"],
        }.items()
    },
    "weight 0.01, top 0.3, sum": ["stabilizer.weight=0.01", "stabilizer.top=0.3", "stabilizer.reduction=sum"],
}


def run(job: dict[str, Any]) -> None:
    """One training run in this process, its rows appended."""
    import torch

    from nsr.errors import InputError, RunStopped

    torch.set_num_threads(1)
    identity = {key: job[key] for key in ("stage", "name", "seed")} | {"commit": commit()}
    append({**identity, "status": "started", "overrides": job["overrides"]})
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(job.get("directory") or folder) / "run"
        try:
            row = {"status": "finished", **train_once(job, directory)}
        except (RunStopped, InputError) as error:
            row = {"status": "stopped", "reason": str(error)}
    append({**identity, **row, "seconds": round(time.perf_counter() - started, 1)})


def train_once(job: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Trains as train.py does; what is kept of the run."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict, read_write

    from nsr.app.composition import compose_checked, plain, without_hydra
    from nsr.app.train import train

    overrides = [*COMMON, *job["overrides"], f"seed={job['seed']}"]
    config = compose_checked("train", [*overrides, f"hydra.run.dir={directory}"])
    directory.mkdir(parents=True)
    with read_write(config), open_dict(config), read_write(config.hydra), open_dict(config.hydra):
        config.hydra.runtime.output_dir = str(directory)
    HydraConfig.instance().set_config(config)
    settings = without_hydra(config)
    train(settings)
    figures = json.loads((directory / "metrics.json").read_text())
    validated = column(directory / "metrics.csv", "validation/robust_accuracy")
    row = {
        "config": fingerprint(plain(settings)),
        "best_epoch": figures["best_epoch"],
        "validation_last_epochs": fmean(validated[-LAST_EPOCHS:]),
        "validation_best": figures["validation/robust_accuracy"],
        "sensitivity": final_sensitivity(directory / "sensitivity.csv", figures["best_epoch"]),
    }
    if job["stage"] == "confirm":  # what selects does not look at the test set, not even into its row
        row |= {key: value for key, value in figures.items() if key.startswith("test") and key.endswith("accuracy")}
        row["right_under_pgd"] = bits(column(directory / "images.csv", "pgd"))
    return row


def fingerprint(settings: dict[str, Any]) -> str:
    """Of all settings but the seed: runs that differ in nothing else have the same."""
    settings = {key: value for key, value in settings.items() if key != "seed"}
    settings["data"] = {key: value for key, value in settings["data"].items() if key != "seed"}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def column(path: Path, name: str) -> list[float]:
    import csv

    with path.open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def final_sensitivity(path: Path, epoch: int) -> dict[str, list[float]]:
    """{layer: [absolute, relative, mean activation]} of the best epoch."""
    from nsr.run.files import layer_means

    return {layer: [round(value, 6) for value in values] for layer, values in layer_means(path, epoch).items()}


def bits(right: Sequence[float]) -> str:
    """Which test images are right, as a hexadecimal number: the first image is its highest bit."""
    return f"{int(''.join(str(int(value)) for value in right), 2):0{-(-len(right) // 4)}x}"


def commit() -> str:
    dirty = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "nsr", "conf"], cwd=ROOT, check=False).returncode
    name = subprocess.run(
        ["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return name.stdout.strip() + ("+changes" if dirty else "")


def append(row: Mapping[str, Any]) -> None:
    with ROWS.open("a") as file:
        file.write(json.dumps(row) + "\n")


def rows(path: Path = ROWS) -> list[dict[str, Any]]:
    """One row a started run, the later one of each."""
    latest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        row = json.loads(line)
        key = (row["stage"], row["name"], row["seed"])
        latest[key] = {**latest.get(key, {}), **row}
    return list(latest.values())


# ---------------------------------------------------------------- stages


def select() -> None:
    perform(
        {"stage": "select", "name": name, "seed": seed, "overrides": ["objective=pgd", *overrides]}
        for seed in SELECT_SEEDS
        for name, overrides in CANDIDATES.items()
    )


def confirm() -> None:
    with tempfile.TemporaryDirectory() as folder:
        perform(
            {
                "stage": "fixed",
                "name": f"fixed network {seed}",
                "seed": seed,
                "overrides": ["objective=natural", "stabilizer=none", "model.width=16"],
                "directory": f"{folder}/{seed}",
            }
            for seed in FIXED_SEEDS
        )
        fixed = [f"{folder}/{seed}/run/checkpoints/best.ckpt" for seed in FIXED_SEEDS]
        perform(
            {
                "stage": "confirm",
                "name": f"{objective} {stabilizer}",
                "seed": seed,
                "overrides": [
                    f"objective={objective}",
                    f"stabilizer={stabilizer}",
                    *([f"attack.checkpoints=[{','.join(fixed)}]"] if objective == "eat" else []),
                ],
            }
            for seed in CONFIRM_SEEDS
            for objective in OBJECTIVES
            for stabilizer in ("none", "sns")
        )


def perform(jobs: Any) -> None:
    """Runs what has no finished row yet."""
    done = {(row["stage"], row["name"], row["seed"]) for row in rows() if row["status"] != "started"}
    missing = [job for job in jobs if "directory" in job or (job["stage"], job["name"], job["seed"]) not in done]
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        list(pool.map(run, missing))


# ---------------------------------------------------------------- the page


def page(all_rows: Sequence[Mapping[str, Any]]) -> str:
    """docs/results.md."""
    return (
        "\n".join([*introduction(all_rows), *selection(all_rows), *confirmation(all_rows), *left_out(all_rows)]) + "\n"
    )


def introduction(all_rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    minutes = sum(row.get("seconds", 0) for row in all_rows) / 60 / PROCESSES
    commits = sorted({row["commit"] for row in all_rows})
    yield from (
        "# Results",
        "",
        "Made by `python -m benchmarks.methods select`, then `confirm`, then `table`, from the rows in",
        f"[benchmarks/results/methods.jsonl](../benchmarks/results/methods.jsonl): {len(all_rows)} runs, about",
        f"{minutes:.0f} minutes on two cores, commits {', '.join(commits)}.",
        "",
        "scikit-learn's digits (8 x 8): 1,097 images trained on, 200 validated, 500 tested; the small network, 20",
        "epochs, Adam; L-infinity, epsilon 0.15; PGD-10 in training and validation, PGD-40 from a random start on the",
        "test set. Accuracies in per cent. `python -m benchmarks.methods` explains how to repeat them.",
        "",
    )


def selection(all_rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from (
        "## The stabiliser's settings, on validation alone",
        "",
        f"Over PGD training, seeds {list(SELECT_SEEDS)}: validated robust accuracy, mean of the last {LAST_EPOCHS}",
        "epochs, and its paired difference to `stabilizer=none`. 200 images and three seeds: differences below about 2",
        "points are noise. The largest mean is the default of conf/stabilizer/sns.yaml.",
        "",
        "| setting | validated robust accuracy | difference, mean (each seed) |",
        "|---|---|---|",
    )
    found = by_name(all_rows, "select")
    base = {row["seed"]: row["validation_last_epochs"] for row in found.get("none", []) if row["status"] == "finished"}
    for name, runs in found.items():
        finished = [row for row in runs if row["status"] == "finished"]
        values = [100 * row["validation_last_epochs"] for row in finished]
        gains = [100 * (row["validation_last_epochs"] - base[row["seed"]]) for row in finished if row["seed"] in base]
        each = ", ".join(f"{gain:+.1f}" for gain in gains)
        yield f"| {name} | {spread(values)} | {f'{fmean(gains):+.2f} ({each})' if gains else ''} |"
    yield ""


def confirmation(all_rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    found = by_name(all_rows, "confirm")
    yield from (
        "## Every objective without and with SNS, on the test set",
        "",
        f"Fresh seeds {CONFIRM_SEEDS[0]} to {CONFIRM_SEEDS[-1]}, the defaults of conf/; mean and standard deviation",
        "over seeds. The difference is SNS minus none at the same seed, with its 95 % t-interval: where that holds 0,",
        "no effect was shown. The best checkpoint is that of validated robust accuracy.",
        "",
        "| objective | clean, none | clean, SNS | PGD-40, none | PGD-40, SNS | PGD-40 difference | of the last epoch |",
        "|---|---|---|---|---|---|---|",
    )
    for objective in OBJECTIVES:
        none, sns = (by_seed(found.get(f"{objective} {name}", [])) for name in ("none", "sns"))
        cells = [
            spread([100 * row[key] for row in runs.values()])
            for key in ("test/clean_accuracy", "test/pgd_accuracy")
            for runs in (none, sns)
        ]
        gains = [paired(none, sns, key) for key in ("test/pgd_accuracy", "test_last/pgd_accuracy")]
        yield f"| {objective} | {' | '.join(cells)} | {' | '.join(gains)} |"
    yield from verdict(found)
    yield from (
        "",
        "Relative sensitivity (movement over activation, mean over layers) of the best checkpoint on the validation",
        "images: the paper's third claim is that the known methods lower it too.",
        "",
        "| objective | none | SNS |",
        "|---|---|---|",
    )
    for objective in OBJECTIVES:
        cells = [
            spread([fmean(layer[1] for layer in row["sensitivity"].values()) for row in runs.values()], digits=3)
            for runs in (by_seed(found.get(f"{objective} {name}", [])) for name in ("none", "sns"))
        ]
        yield f"| {objective} | {' | '.join(cells)} |"
    yield ""


def verdict(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """What the intervals say, and what so many of them say by chance."""
    up, down, without = [], [], []
    for objective in OBJECTIVES:
        none, sns = (by_seed(found.get(f"{objective} {name}", [])) for name in ("none", "sns"))
        bounds = interval(none, sns, "test/pgd_accuracy")
        kind = without if bounds is None or bounds[0] <= 0 <= bounds[1] else up if bounds[0] > 0 else down
        kind.append(objective)
    chance = 100 * (1 - 0.95 ** len(OBJECTIVES))
    yield from (
        "",
        f"PGD-40 of the best checkpoint: a gain was shown for {', '.join(up) or 'none'}, a loss for",
        f"{', '.join(down) or 'none'}, no effect for {', '.join(without) or 'none'}.",
        f"{len(OBJECTIVES)} intervals at 95 % exclude 0 somewhere by chance in {chance:.0f} of 100 such tables.",
    )


def left_out(all_rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    odd = [row for row in all_rows if row["status"] != "finished"]
    yield f"## Runs without figures: {len(odd)}"
    yield ""
    for row in odd:
        yield f"* {row['stage']}, {row['name']}, seed {row['seed']}: {row.get('reason', 'started, not finished')}"


def by_name(all_rows: Sequence[Mapping[str, Any]], stage: str) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted((row for row in all_rows if row["stage"] == stage), key=lambda row: row["seed"]):
        found.setdefault(row["name"], []).append(row)
    order = list(CANDIDATES)
    return dict(sorted(found.items(), key=lambda entry: order.index(entry[0]) if entry[0] in order else 0))


def by_seed(runs: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    return {row["seed"]: row for row in runs if row["status"] == "finished"}


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation."""
    if not values:
        return ""
    return f"{fmean(values):.{digits}f}" + (f" +- {stdev(values):.{digits}f}" if len(values) > 1 else "")


def interval(
    none: Mapping[int, Mapping[str, Any]], sns: Mapping[int, Mapping[str, Any]], key: str
) -> tuple[float, float] | None:
    """The 95 % interval (Student's t) of the difference in points of runs of one seed; None for less than two."""
    from scipy.stats import t

    gains = [100 * (sns[seed][key] - none[seed][key]) for seed in none if seed in sns]
    if len(gains) < 2:
        return None
    half = t.ppf(0.975, len(gains) - 1) * stdev(gains) / len(gains) ** 0.5
    return fmean(gains) - half, fmean(gains) + half


def paired(none: Mapping[int, Mapping[str, Any]], sns: Mapping[int, Mapping[str, Any]], key: str) -> str:
    """The mean difference and its interval as text."""
    bounds = interval(none, sns, key)
    return "" if bounds is None else f"{fmean(bounds):+.2f} [{bounds[0]:+.2f}, {bounds[1]:+.2f}]"


def main(arguments: Sequence[str]) -> None:
    stages = {"select": select, "confirm": confirm, "table": lambda: TABLE.write_text(page(rows()))}
    if len(arguments) != 1 or arguments[0] not in stages:
        sys.exit(f"{__doc__}\nerror: give one of {', '.join(stages)}")
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    stages[arguments[0]]()


if __name__ == "__main__":
    main(sys.argv[1:])
