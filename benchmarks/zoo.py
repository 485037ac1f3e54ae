"""Networks of the zoo: weights, model card and index entry of a finished run and its evaluation, and docs/zoo.md.

    python -m benchmarks.zoo make NAME       trains, evaluates and adds a network of benchmarks/zoo.yaml
    python -m benchmarks.zoo add RUN NAME    adds the network of a run that has an evaluation: nsr/zoo/NAME.safetensors,
                                             NAME.md, its entry of index.json, and a row for each test image in
                                             benchmarks/results/zoo.csv
    python -m benchmarks.zoo page            docs/zoo.md and all cards from the index and the rows

`add` takes the newest finished evaluation in RUN/evaluations and the checkpoint that it measured. An entry is never
overwritten. The settings of the run are in the metadata of the safetensors file.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import torch
import yaml
from safetensors.torch import save

from benchmarks.common import DOCS, RESULTS, ROOT, installed, table
from nsr import __version__
from nsr.errors import InputError
from nsr.evaluation.outcomes import wilson
from nsr.plots.style import NORMS
from nsr.run.commands import shell_quoted
from nsr.run.files import append_rows, layer_means, write_json, write_text
from nsr.zoo import FOLDER, zoo_index

LARGEST = 15 * 10**6  # bytes of all weights
PAGE = DOCS / "zoo.md"
RECIPES = Path(__file__).with_suffix(".yaml")
TEXT = Path(__file__).with_name("zoo_text.md")
ROWS = RESULTS / "zoo.csv"
ATTACKS = ("autoattack", "adaptive", "features")
COLUMNS = ("name", "image", "label", "clean", *ATTACKS)  # 1 where an image is classified correctly, else 0
OF_THE_MACHINE = ("data_origin", "logger")  # settings that are not stored


def make(name: str) -> None:
    """Train, evaluate and add a network of zoo.yaml."""
    recipe, run = read(RECIPES)[name], ROOT / "runs" / "zoo" / name
    checkpoint = run / "checkpoints" / f"{recipe['checkpoint']}.ckpt"
    for program, words in ("train", recipe["train"]), ("evaluate", recipe["evaluate"]):
        place = f"hydra.run.dir={run}" if program == "train" else f"checkpoint={checkpoint}"
        subprocess.run([sys.executable, ROOT / f"{program}.py", place, *words.split()], cwd=ROOT, check=True)
    add(run, name)


def add(run: Path, name: str) -> None:
    """Add the network of a run; InputError where the name is taken or the run has no finished evaluation."""
    index = zoo_index()
    if name in index or not re.fullmatch(r"[a-z0-9_]+", name):
        raise InputError(f"name is {name!r}; it must be a new one of lower-case letters, digits and _")
    evaluation = newest_evaluation(run)
    content = weights(run / "checkpoints" / Path(read(evaluation / "config.yaml")["checkpoint"]).name)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), **facts(run, evaluation)}
    if sum(each["bytes"] for each in [*index.values(), entry]) > LARGEST:
        raise InputError(f"{name} would make the zoo larger than {LARGEST / 1e6:.0f} MB; add a smaller network")
    append_rows(ROWS, COLUMNS, image_rows(name, evaluation))
    (FOLDER / f"{name}.safetensors").write_bytes(content)
    write_text(FOLDER / f"{name}.md", card(name, entry))
    write_json(FOLDER / "index.json", dict(sorted({**index, name: entry}.items())))


def newest_evaluation(run: Path) -> Path:
    """Return the folder of the newest finished evaluation of a run; InputError where there is none."""
    for folder in sorted((run / "evaluations").glob("*/"), reverse=True):
        if (folder / "status.json").exists() and read(folder / "status.json")["status"] == "finished":
            return folder
    raise InputError(f"{run} has no finished evaluation; run evaluate.py checkpoint={run}/checkpoints/best.ckpt")


def weights(checkpoint: Path) -> bytes:
    """Return the network of a run's checkpoint as a file of safetensors, its settings in the metadata."""
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    state = {key: value.contiguous() for key, value in saved["state_dict"].items() if key.startswith("net.")}
    settings = {key: value for key, value in saved["nsr_settings"].items() if key not in OF_THE_MACHINE}
    if Path(settings["data"].get("root") or "").is_absolute():  # of this machine
        settings["data"] = {**settings["data"], "root": "datasets"}
    return save(state, {"nsr_settings": json.dumps(settings)})


def image_rows(name: str, evaluation: Path) -> list[list[str]]:
    """Return the row of each test image; an attack that was not measured is left empty."""
    with (evaluation / "images.csv").open(newline="") as file:
        return [[name, *(row.get(column, "") for column in COLUMNS[1:])] for row in csv.DictReader(file)]


def facts(run: Path, evaluation: Path) -> dict[str, Any]:
    """Return what the index says about a network, beside its file."""
    settings, measured = read(run / "config.yaml"), read(evaluation / "config.yaml")
    metrics = read(evaluation / "evaluation.json")
    layers = layer_means(evaluation / "sensitivity.csv", None)
    choices = {part: settings["choices"].get(part) for part in ("data", "model", "objective", "stabilizer")}
    if choices["data"] == "image_folder":
        choices["data"] = Path(settings["data"]["root"]).name
    return {
        **choices,
        **{key: settings[key] for key in ("norm", "epsilon", "seed")},
        "train": settings["overrides"],
        "checkpoint": Path(measured["checkpoint"]).name,
        "evaluate": [word for word in measured["overrides"] if not word.startswith(("checkpoint=", "hydra."))],
        "images": len((evaluation / "images.csv").read_text().splitlines()) - 1,
        "clean": metrics["test/clean_accuracy"],
        "worst_case": [metrics[f"test/worst_case_{end}"] for end in ("accuracy", "low", "high")],
        "sensitivity": {layer: [round(value, 6) for value in values] for layer, values in layers.items()},
        "versions": {"nsr": __version__, "torch": installed("torch")},
    }


def card(name: str, entry: Mapping[str, Any]) -> str:
    """Return the model card, in Markdown."""
    norm = NORMS.get(entry["norm"], entry["norm"])
    accuracy, low, high = (100 * value for value in entry["worst_case"])
    ends = [100 * end for end in wilson(round(entry["clean"] * entry["images"]), entry["images"])]
    train = command_line("train", entry["train"])
    evaluate = command_line("evaluate", [f"checkpoint=zoo:{name}", *entry["evaluate"]])
    versions = ", ".join(f"{package} {version}" for package, version in entry["versions"].items())
    rows = [[layer, *(f"{value:.4g}" for value in values)] for layer, values in entry["sensitivity"].items()]
    lines = [
        f"# {name}",
        "",
        f"{entry['model']} on {entry['data']}, objective {entry['objective']}, stabilizer {entry['stabilizer']}, seed "
        f"{entry['seed']};",
        f"{entry['checkpoint']} of the run. `checkpoint=zoo:{name}`, or `model.weights=zoo:{name}`.",
        "",
        *table(
            ["accuracy", "%", "95 % interval over images"],
            [
                ["clean", f"{100 * entry['clean']:.2f}", f"{ends[0]:.2f} to {ends[1]:.2f}"],
                [f"worst case, {norm} {entry['epsilon']}", f"{accuracy:.2f}", f"{low:.2f} to {high:.2f}"],
            ],
        ),
        "",
        f"Measured on {entry['images']} test images. One run of one seed: no evidence for or against a method.",
        "",
        f"    {train}",
        f"    {evaluate}",
        "",
        f"{versions}; SHA-256 of the weights {entry['sha256']}.",
        "",
        "Sensitivity under the evaluation's sensitivity attack, means over each layer's neurons:",
        "",
        *table(["layer", "absolute", "relative", "mean activation"], rows),
    ]
    return "\n".join(lines) + "\n"


def command_line(program: str, words: list[str]) -> str:
    """Return a command that works when pasted."""
    kept = [word for word in words if not word.startswith(("hydra.run.dir=", "data.root=/"))]
    return " ".join([f"nsr-{program}", *map(shell_quoted, kept)])


def page(index: Mapping[str, Mapping[str, Any]]) -> str:
    """Return docs/zoo.md."""
    rows = [
        [
            f"[{name}](../nsr/zoo/{name}.md)",
            f"{NORMS.get(entry['norm'], entry['norm'])} {entry['epsilon']}",
            *(f"{100 * value:.1f}" for value in (entry["clean"], entry["worst_case"][0])),
            str(entry["images"]),
            f"{fmean(values[1] for values in entry['sensitivity'].values()):.3f}",
            f"{entry['bytes'] / 1e6:.1f}",
        ]
        for name, entry in index.items()
    ]
    headings = ["name", "threat model", "clean, %", "worst case, %", "images", "relative sensitivity", "MB"]
    parts = {"table": table(headings, rows), "adaptive": adaptive(pd.read_csv(ROWS))}
    return TEXT.read_text().format(**{name: "\n".join(lines) for name, lines in parts.items()})


def adaptive(rows: pd.DataFrame) -> list[str]:
    """Return the table of AutoAttack beside the adaptive attacks: robust images, and images that each adds."""
    cells, fooled = [], 0
    for name, own in rows.dropna(subset=list(ATTACKS)).groupby("name"):
        robust = own["autoattack"] == 1
        accuracies = [100 * own[attack].mean() for attack in ATTACKS]
        worst = own[list(ATTACKS)].min(axis=1).mean()
        added = [int((robust & (own[attack] == 0)).sum()) for attack in ATTACKS[1:]]
        fooled += int((robust & (own[list(ATTACKS)].min(axis=1) == 0)).sum())
        numbers = [f"{value:.1f}" for value in (*accuracies, 100 * worst)]
        cells.append([str(name), str(len(own)), *numbers, *map(str, added)])
    attacks = ["AutoAttack, %", "adaptive, %", "features, %", "worst of the three, %"]
    found = (
        f"The adaptive attacks fool {fooled or 'none'} of the images that AutoAttack leaves robust, over all networks."
    )
    return [*table(["network", "images", *attacks, "only adaptive", "only features"], cells), "", found]


def read(path: Path) -> Any:
    """Return the content of a YAML or JSON file."""
    return yaml.safe_load(path.read_text())


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["make", name]:
            make(name)
        case ["add", run, name]:
            add(Path(run), name)
        case ["page"]:
            PAGE.write_text(page(zoo_index()))
            for name, entry in zoo_index().items():
                write_text(FOLDER / f"{name}.md", card(name, entry))
        case _:
            sys.exit(__doc__)
