"""docs/performance.md from its text and the rows of the benchmarks of speed.

python -m benchmarks.performance_page
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy

from benchmarks import speedrun
from benchmarks.common import DOCS, RESULTS, interval, table
from benchmarks.evidence.findings import study
from benchmarks.evidence.plan import LONGER
from benchmarks.peers import COMPILED, IN_FLOAT32, NOT_FOLDED
from nsr.comparison.inference import paired_interval

PAGE = DOCS / "performance.md"
TEXT = Path(__file__).with_name("performance_text.md")
GOALS = {  # of "nsr" beside the fastest peer in float32, by network and precision
    ("ResNet20", "float32"): 0.72,
    ("ResNet18", "float32"): 0.85,
    ("ResNet20", "bf16"): 0.50,
    ("ResNet18", "bf16"): 0.46,
}
COMPILED_GOALS = {("ResNet20", "bf16"): 0.42, ("ResNet18", "bf16"): 0.45}
SNS_GOAL, SMALL_GOAL, METRICS_GOAL, STARTUP_GOAL, AUTOATTACK_GOAL = 1.10, 1.03, 0.02, 1.25, 0.65
Row = Mapping[str, Any]


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of benchmarks/results/NAME.jsonl; none where it was not measured."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def newest(name: str) -> list[Row]:
    """The newest row of each network, precision and batch, in the order of the goals, larger batches first."""
    found = {(row["network"], row["precision"], row["batch"]): row for row in rows(name)}
    order = {key: place for place, key in enumerate(GOALS)}
    return [found[key] for key in sorted(found, key=lambda key: (order.get(key[:2], len(order)), -key[2]))]


def largest(name: str) -> dict[tuple[str, str], Row]:
    """{(network, precision): the newest row of its largest batch}."""
    return {(row["network"], row["precision"]): row for row in reversed(newest(name))}


def rounding() -> list[str]:
    """What auto and the control differ from off by, paired by seed."""
    found, lines = rows("rounding"), []
    measures = {
        "accuracy on clean images, points": lambda row, arm: 100 * (row[arm]["clean"] - row["off"]["clean"]),
        "accuracy under PGD-20, points": lambda row, arm: 100 * (row[arm]["pgd"] - row["off"]["pgd"]),
        "distance of the weights, % of their norm": lambda row, arm: 100 * row[arm]["weights_from_off"],
        "images with another outcome under PGD-20": lambda row, arm: row[arm]["outcomes_from_off"],
    }
    for name, value in measures.items():
        arms = [[value(row, arm) for row in found] for arm in ("auto", "control")]
        differences = [one - other for one, other in zip(*arms, strict=True)]
        cells = [_paired(values) for values in (*arms, differences)]
        lines.append([name, *cells])
    return table(["", "auto - off", "control - off", "auto - control"], lines)


def _paired(differences: Sequence[float]) -> str:
    found = paired_interval(numpy.array(differences))
    return interval(found["difference"], found["low"], found["high"])


def peers() -> list[str]:
    """Ratios of each contender's step to the fastest peer's of the same network and precision, and its passes."""
    lines = []
    for row in newest("peers"):
        for name, ratio in row["to_fastest_peer"].items():
            if name not in row["robust_accuracy"] and not name.startswith("nsr, ") and name != IN_FLOAT32:
                continue
            passes = row["passes"][name]
            accuracy = row["robust_accuracy"][name.split(",")[0].removesuffix(" in float32")]
            counts = f"{passes['forward']} / {passes['backward']}"
            cells = [_step(row), name, f"{ratio:.2f}", *_times(row["step_ms"][name]), counts]
            lines.append([*cells, f"{100 * accuracy:.1f} %"])
    columns = ["step", "contender", "time / fastest peer", "ms, median (quartiles)", "n", "passes", "accuracy under it"]
    return table(columns, lines)


def _step(row: Row) -> str:
    return f"{row['network']}, {row['precision']}, {row['batch']} images"


def _times(times: Mapping[str, float]) -> list[str]:
    """Median and quartiles, and n."""
    quartiles = f"{times['lower_quartile']:.0f} to {times['upper_quartile']:.0f}"
    return [f"{times['median']:.0f} ({quartiles})", str(times["n"])]


def compiled() -> list[str]:
    """Each step beside the plain loop of the same precision, and what its first step took."""
    lines = []
    for row in newest("compiled"):
        plain = row["step_ms"]["plain loop"]["median"]
        for name, times in row["step_ms"].items():
            first = f"{row['first_step'][name]:.0f}" if name in (COMPILED, NOT_FOLDED) else ""
            lines.append([_step(row), name, f"{times['median'] / plain:.2f}", *_times(times), first])
    columns = ["step", "contender", "to plain loop", "ms, median (quartiles)", "n", "first step, s"]
    return table(columns, lines) if lines else []


def batches() -> list[str]:
    """The sizes of PGD's batches, the costs of an image by size, and the gain of full ones."""
    lines, shown = [], ("250", "128", "64", "16", "4")
    for row in rows("batches"):
        sizes, costs = row["batch_sizes"], row["image_ms"]
        cells = [f"{row['title']}, Linf {row['epsilon']}, {row['network']}", f"{row['robust']} / {row['images']}"]
        cells += [f"{sum(sizes)} / {len(sizes)}", f"{median(sizes):.0f} ({min(sizes)} to {max(sizes)})"]
        cells.append(" / ".join(f"{costs[size]['median']:.3f}" for size in shown))
        lines.append([*cells, str(costs["250"]["n"]), f"{row['gain']:.2f}", f"{row['bound']:.2f}"])
    columns = ["attack", "robust", "image passes / passes", "images in a pass, median (range)"]
    return table([*columns, f"ms an image, {' / '.join(shown)} at once", "n", "gain", "bound"], lines)


def goals() -> list[str]:
    """Return a row per goal: the measured value, the goal and the gap."""
    lines = []
    for (network, precision), row in largest("compiled").items():
        if (network, precision) in COMPILED_GOALS:
            ratio = row["step_ms"][COMPILED]["median"] / row["step_ms"][IN_FLOAT32]["median"]
            goal = COMPILED_GOALS[network, precision]
            lines.append(_goal(f"compiled {precision} step / {IN_FLOAT32}, {network}", ratio, goal))
    for (network, precision), row in largest("peers").items():
        beside = IN_FLOAT32 if precision == "bf16" else row["fastest_peer"]
        ratio = row["step_ms"]["nsr"]["median"] / row["step_ms"][beside]["median"]
        lines.append(_goal(f"default {precision} step / {beside}, {network}", ratio, GOALS[network, precision]))
        name = f"SNS's added time / a clean forward and backward pass, {network}, {precision}"
        lines.append(_goal(name, row["sns_added_to_clean_pass"], SNS_GOAL))
    for row in rows("evaluation"):
        if row["attack"] == "autoattack":
            where = f"{row['network']}, Linf {row['epsilon']}, {row['images']} images"
            lines.append(
                _goal(f"AutoAttack standard / the original by hand, {where}", row["ratio"]["nsr"], AUTOATTACK_GOAL)
            )
    for name in speedrun.PLANS:
        one = study(name)
        for arm, said in {"none": "speedrun", LONGER: "speedrun with fewer steps"}.items():
            if speedrun.pairs(one, arm):
                data = one.plan["title"].partition(",")[0]
                what = f"training time of the {said} / PGD-10's, {data}"
                lines.append(_goal(what, speedrun.ratio(one, arm), speedrun.GOAL))
                what = f"points of worst case that the {said} loses to PGD-10, upper end of the interval, {data}"
                lines.append(_goal(what, -speedrun.minus_baseline(one, arm).low, -speedrun.MARGIN))
    telemetry = rows("telemetry")[-1]
    for name in ("to_passes_alone", "nothing_folded_to_passes_alone"):
        folded = ", nothing folded" if name.startswith("nothing") else ""
        lines.append(_goal(f"small network: step{folded} / its passes alone", telemetry[name], SMALL_GOAL))
    lines.append(
        _goal("small network: fraction of a step spent on metrics", telemetry["metrics_share"], METRICS_GOAL, 3)
    )
    for startup in rows("startup")[-1:]:
        lines.append(
            _goal(f"command to first step / bare script, n = {startup['rounds']}", startup["ratio"], STARTUP_GOAL)
        )
    return table(["", "measured", "goal", "missed by"], lines)


def _goal(name: str, value: float, goal: float, digits: int = 2) -> Sequence[str]:
    missed = round(value, digits) - goal
    return [name, f"{value:.{digits}f}", f"{goal:.{digits}f}", f"{missed:.{digits}f}" if missed > 0 else "reached"]


def evaluation() -> list[str]:
    """Each attack beside its reference: robust images, other outcomes, and the ratio of processor times."""
    lines = []
    for row in rows("evaluation"):
        reference = next(name for name in row["robust"] if name not in row["ratio"])
        what = f"{row['title']}, Linf {row['epsilon']}, {row['network']}"
        images = f"{row['images']}, {row['clean']} correct without attack"
        for name, ratio in row["ratio"].items():
            robust = f"{row['robust'][name]} / {row['robust'][reference]}"
            different = ", ".join(map(str, row["different"][name])) or "none"
            cells = [what, images, f"{name} / {reference}", robust, different, f"{ratio:.2f}"]
            lines.append([*cells, str(len(row["processor_s"][name]))])
    return table(
        ["attack", "images", "search / reference", "robust images", "other outcomes", "time / reference", "n"], lines
    )


def profile() -> list[str]:
    """The largest shares of a step's time by operation."""
    found = rows("telemetry")[-1]["profile"]
    return table(["operation", "%"], [[f"`{name}`", f"{100 * share:.0f}"] for name, share in found.items()])


def conditions() -> list[str]:
    """Where and when the rows were measured."""
    machines: dict[str, None] = {}
    for name in ("peers", "compiled", "batches", "telemetry", "startup"):
        for row in rows(name):
            gpu, versions = row["gpu"] or "no GPU", row["versions"]
            machines[f"{row['cores']} cores, {gpu}, {row['threads']} thread, torch {versions['torch']}"] = None
    loads = [row["load"] for name in ("peers", "compiled", "batches", "telemetry") for row in rows(name)]
    seen = f"load averages of {min(loads):.0f} to {max(loads):.0f}"
    return [f"Machine: {'; '.join(machines)}. It was busy ({seen})."]


def page() -> str:
    """The text with its tables."""
    text = TEXT.read_text()
    parts = {"rounding": rounding, "peers": peers, "goals": goals, "profile": profile, "conditions": conditions}
    parts |= {
        "evaluation": evaluation,
        "speedrun": speedrun.section,
        "compiled": compiled,
        "batches": batches,
    }
    for name, make in parts.items():
        text = text.replace(f"{{{name}}}", "\n".join(make()))
    seeds = len(rows("rounding"))
    return text.replace("{seeds}", str(seeds)).replace("{control}", _mean("control")).replace("{auto}", _mean("auto"))


def _mean(arm: str) -> str:
    values: Iterable[float] = (row[arm]["outcomes_from_off"] for row in rows("rounding"))
    return f"{fmean(values):.0f}"


if __name__ == "__main__":
    PAGE.write_text(page())
