"""The third claim on digits: do methods that make a network more robust also make its neurons less sensitive?

    python -m benchmarks.third_claim      docs/third_claim.md and docs/figures/third_claim.png

Made from the rows of `python -m benchmarks.methods confirm` with the functions of nsr.compare; trains nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas

from benchmarks import methods
from nsr.comparison.frames import layers_of, sensitivity_columns, with_types
from nsr.comparison.labels import place_in_tables
from nsr.comparison.plots import drawn, robustness
from nsr.comparison.result import Comparison, compare
from nsr.comparison.statistics import paired_differences
from nsr.comparison.tables import Cell, Sheet, accuracies, correlated, sensitivities
from nsr.comparison.writing import markdown_table
from nsr.plotting import save

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "third_claim.md"
FIGURE = ROOT / "docs" / "figures" / "third_claim.png"
MEASURES = ("absolute", "relative")
KNOWN = [name for name in methods.OBJECTIVES if name != "natural"]


def frame(rows: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    """A row a run of the stage `confirm`, as nsr.compare.read_runs has it."""
    found = []
    for row in rows:
        if row["stage"] != "confirm":
            continue
        objective, stabilizer = row["name"].split()
        accuracies = {
            name.removeprefix("test/"): value
            for name, value in row.items()
            if name.startswith("test/") and name.endswith("_accuracy")
        }
        found.append(
            {
                "run": f"{row['name']}, seed {row['seed']}",
                "method": objective if stabilizer == "none" else f"{objective} + {stabilizer}",
                "objective": objective,
                "stabilized": stabilizer != "none",
                "adversarial": objective != "natural",
                "seed": row["seed"],
                "status": "finished" if row["status"] == "finished" else "failed",
                "detail": "" if row["status"] == "finished" else row.get("reason", "started, not finished"),
                "best_epoch": row.get("best_epoch"),
                **accuracies,
                **(sensitivity_columns(row["sensitivity"]) if "sensitivity" in row else {}),
            }
        )
    found.sort(key=lambda row: (*place_in_tables(row["objective"], row["stabilized"], row["method"]), row["seed"]))
    return with_types(pandas.DataFrame(found))


def comparison(runs: pandas.DataFrame) -> Comparison:
    """With the correlations also among runs without SNS: it lowers sensitivity by what it is trained for."""
    plain, adversarial = ~runs["stabilized"].astype(bool), runs["adversarial"].astype(bool)
    among = {
        "all": plain | True,
        "adversarially trained": adversarial,
        "without SNS": plain,
        "without SNS, adversarially trained": plain & adversarial,
    }
    return compare(runs, accuracy="pgd", among=among)


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """docs/third_claim.md."""
    runs = frame(rows)
    result = comparison(runs)
    parts = [introduction(rows, runs), answer(result), exceptions(result), tables(result), unfinished(runs)]
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def introduction(rows: Sequence[Mapping[str, Any]], runs: pandas.DataFrame) -> Iterator[str]:
    commits = sorted({row["commit"] for row in rows if row["stage"] == "confirm"})
    yield from (
        "# The third claim: is a robust network less sensitive?",
        "",
        "Made by `python -m benchmarks.third_claim` from the rows in",
        f"[benchmarks/results/methods.jsonl](../benchmarks/results/methods.jsonl): {len(runs)} runs,",
        f"{runs['method'].nunique()} methods, seeds {runs['seed'].min()} to {runs['seed'].max()}, commit"
        f" {', '.join(commits)}.",
        "",
        "The paper's third claim is that known adversarial training methods lower neuron sensitivity as well. Here:",
        "scikit-learn's digits, the small network, L-infinity, epsilon 0.15; accuracy on 500 test images under PGD-40,",
        "sensitivity on 200 validation images under PGD-10, both of the checkpoint with the best validated robust",
        "accuracy; the mean over layers where no layer is named. AutoAttack was not measured in these rows.",
        "Spearman's correlation is over runs, its 95 % interval from a bootstrap that draws methods with all their",
        "seeds. Relative is movement over activation: unlike the absolute measure it does not fall where a network",
        "merely shrinks its activations. `natural + sns` counts as not adversarially trained, though its stabiliser",
        "sees adversarial images.",
        "",
    )


def answer(result: Comparison) -> Iterator[str]:
    """In words, what the intervals say."""
    found = against_natural(result.runs)
    yield from (
        "## Do the known methods lower sensitivity, and does it fall with robustness?",
        "",
        f"Against natural training at equal seeds, all without SNS: for how many of the {len(KNOWN)} adversarial",
        "objectives sensitivity is lower, open (the 95 % t-interval holds 0) or higher, and for which it is not lower.",
        "",
        "| layer | absolute: lower, open, higher | not lower | relative: lower, open, higher | not lower |",
        "|---|---|---|---|---|",
    )
    for layer in ("mean", *layers_of(result.runs)):
        cells = [verdicts(found, measure if layer == "mean" else f"{measure}/{layer}") for measure in MEASURES]
        yield f"| {layer} | {' | '.join(text for cell in cells for text in cell)} |"
    yield from ("", "As accuracy under PGD-40 rises, sensitivity, the mean over layers,", "")
    for measure in MEASURES:
        for row in of_means(result, measure):
            which = {"all": "methods"}.get(row["among"], f"methods, {row['among']}")
            yield f"* **{measure}**, {row['methods']:.0f} {which}: {direction(row)}, {interval(row)}"
    yield from ("", f"![accuracy under PGD against sensitivity]({FIGURE.relative_to(PAGE.parent)})", "")


def exceptions(result: Comparison) -> Iterator[str]:
    """In words, what does not fit."""
    yield from ("## What does not fit", "")
    for measure in MEASURES:
        layers = [f"{row['layer']} ({interval(row)})" for row in of_layers(result, measure) if not shown(row)]
        yield f"* {measure.capitalize()}, by layer, among the adversarially trained: the correlation's interval"
        yield f"  {'holds 0 in ' + ', '.join(layers) if layers else 'leaves out 0 in every layer'}."
        yield f"* Methods far from their place by {measure} sensitivity (1st is the least sensitive, the most robust):"
        yield from (f"  * {text}" for text in displaced(result.methods, measure) or ["none"])
    yield from stabilised(result)
    natural = result.runs[result.runs["method"] == "natural"]["best_epoch"]
    yield from (
        "* Natural training's checkpoints are chosen by robust accuracy like the others, and so are early: epochs",
        f"  {natural.min()} to {natural.max()} of 20. Fully trained it would be compared at another point.",
        "* A correlation over methods is no cause. Sensitivity is measured under the attack itself: a network that the",
        "  attack fools has moved by necessity. One small data set, one architecture, one radius; an interval from so",
        "  few methods is a rough one.",
        "",
    )


def stabilised(result: Comparison) -> Iterator[str]:
    """SNS against its own objective: an intervention on sensitivity."""
    changes = {objective: own_change(result.runs, objective) for objective in methods.OBJECTIVES}
    lowered = {name: [key for key, found in changes.items() if found[name][2] < 0] for name in MEASURES}
    gained = [key for key, found in changes.items() if found["pgd_accuracy"][1] > 0]
    lost = [key for key, found in changes.items() if found["pgd_accuracy"][2] < 0]
    without = [key for key in changes if key not in (*gained, *lost)]
    yield "* SNS lowers sensitivity on purpose. Paired by seed it lowers the absolute one for"
    yield f"  {listed(lowered['absolute'])}, the relative one for {listed(lowered['relative'])}; accuracy under PGD-40"
    yield f"  rises for {listed(gained)}, falls for {listed(lost)}, and no change is shown for {listed(without)}."
    yield "  Where it does not rise, a less sensitive network is not a more robust one."


def tables(result: Comparison) -> Iterator[str]:
    accuracy = accuracies(result)
    places = [place for place, heading in enumerate(accuracy.headings) if heading != "AutoAttack"]
    sensitivity = sensitivities(result)
    by_method = Sheet(
        "Methods: mean +- standard deviation over seeds; accuracies in per cent, best mean in bold",
        [*(accuracy.headings[place] for place in places), *sensitivity.headings[2:]],
        [
            [*(row[place] for place in places), *other[2:]]
            for row, other in zip(accuracy.rows, sensitivity.rows, strict=True)
        ],
    )
    for sheet in (by_method, correlated(result), changes_table(result)):
        yield from (f"## {sheet.title[0].upper()}{sheet.title[1:]}", "", *markdown_table(sheet), "")


def changes_table(result: Comparison) -> Sheet:
    names = {"pgd_accuracy": (100, 2), **dict.fromkeys(MEASURES, (1, 3))}  # factor, digits
    rows = []
    for objective in methods.OBJECTIVES:
        found = own_change(result.runs, objective)
        texts = [change(found[name], *scale) for name, scale in names.items()]
        rows.append([Cell(objective), *map(Cell, texts)])
    return Sheet(
        "SNS minus none at equal seeds: mean [95 % t-interval], accuracy in points",
        ["objective", "pgd", *MEASURES],
        rows,
    )


def unfinished(runs: pandas.DataFrame) -> Iterator[str]:
    odd = runs[runs["status"] != "finished"]
    yield f"## Runs without figures: {len(odd)}"
    yield ""
    yield from (f"* {row['run']}: {row['detail']}" for row in odd.to_dict("records"))


# ---------------------------------------------------------------- figures in words


def against_natural(runs: pandas.DataFrame) -> pandas.DataFrame:
    """The paired differences of the objectives without SNS to natural training."""
    return paired_differences(runs[~runs["stabilized"].astype(bool)], "natural")


def verdicts(differences: pandas.DataFrame, figure: str) -> tuple[str, str]:
    """('6, 1, 1', the methods that are not lower)."""
    found = differences[differences["figure"] == figure]
    lower, higher = found["high"] < 0, found["low"] > 0
    counts = lower.sum(), (~lower & ~higher).sum(), higher.sum()
    return ", ".join(map(str, counts)), ", ".join(found["method"][~lower])


def own_change(runs: pandas.DataFrame, objective: str) -> dict[str, tuple[float, float, float]]:
    """{figure: mean, low, high} of SNS over an objective minus the objective alone."""
    found = paired_differences(runs[runs["objective"] == objective], objective)
    return {row["figure"]: (row["difference"], row["low"], row["high"]) for row in found.to_dict("records")}


def of_means(result: Comparison, measure: str) -> list[dict[str, Any]]:
    """The correlations of the mean over layers: all, adversarially trained, both without SNS."""
    found = result.correlations
    return found[(found["measure"] == measure) & (found["layer"] == "mean")].to_dict("records")


def of_layers(result: Comparison, measure: str) -> list[dict[str, Any]]:
    """The correlations of each layer among the adversarially trained."""
    found = result.correlations
    chosen = (found["among"] == "adversarially trained") & (found["measure"] == measure)
    return found[chosen & found["layer"].isin(layers_of(result.runs))].to_dict("records")


def displaced(table: pandas.DataFrame, measure: str) -> list[str]:
    """Methods whose ranks by sensitivity and by accuracy lie a third of all methods apart, or more."""
    sensitive = table[measure].rank(method="min").astype(int)
    robust = (-table["pgd_accuracy"]).rank(method="min").astype(int)
    far = (sensitive - robust).abs().sort_values(ascending=False)
    return [
        f"{table['method'][place]}: {sensitive[place]} by sensitivity, {robust[place]} by accuracy"
        for place in far.index
        if far[place] >= len(table) / 3
    ]


def shown(row: Mapping[str, Any]) -> bool:
    """Whether the interval leaves out 0."""
    return row["low"] > 0 or row["high"] < 0


def direction(row: Mapping[str, Any]) -> str:
    return "no order is shown" if not shown(row) else "falls" if row["high"] < 0 else "rises"


def interval(row: Mapping[str, Any]) -> str:
    return f"{row['correlation']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"


def change(found: tuple[float, float, float], factor: int, digits: int) -> str:
    mean, low, high = (f"{factor * value:+.{digits}f}" for value in found)
    return f"{mean} [{low}, {high}]"


def listed(names: Sequence[str]) -> str:
    every = "all objectives" if len(names) == len(methods.OBJECTIVES) else ", ".join(names)
    return every or "none"


def main() -> None:
    rows = methods.rows()
    PAGE.write_text(page(rows))
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure = drawn(robustness, comparison(frame(rows)))
    assert figure is not None
    save(figure, FIGURE.with_suffix(""), ["png"])


if __name__ == "__main__":
    main()
