"""The third claim on digits: are networks of more robust training methods less sensitive?

    python -m benchmarks.third_claim      docs/third_claim.md and docs/third_claim.png

Made from the rows of `python -m benchmarks.methods confirm`; nothing is trained. The correlations and the plot are
those of nsr.comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import fmean
from typing import Any

import pandas

from benchmarks import methods
from benchmarks.common import DOCS, interval, names, sign, spread, t_interval, table
from nsr.comparison.frames import sensitivity_columns
from nsr.comparison.plots import drawn, robustness
from nsr.comparison.statistics import Comparison, compare
from nsr.plotting import save

PAGE = DOCS / "third_claim.md"
PLOT = DOCS / "third_claim.png"
MEASURES = ("absolute", "relative", "activation")  # places in a row's sensitivities
KNOWN = methods.OBJECTIVES[1:]  # adversarial training methods
NAMES = [f"{objective} {stabilizer}" for objective in methods.OBJECTIVES for stabilizer in ("none", "sns")]
Runs = dict[str, dict[int, methods.Row]]  # {name: {seed: finished run}}


def finished(rows: methods.Rows) -> Runs:
    return {name: methods.by_seed(rows, "confirm", name) for name in NAMES}


def label(name: str) -> str:
    """'pgd none' -> 'pgd', 'pgd sns' -> 'pgd + sns'"""
    return name.removesuffix(" none").replace(" ", " + ")


def sensitivity(run: methods.Row, measure: str, layer: str = "mean") -> float:
    """A measure of one layer, or its mean over layers."""
    place, layers = MEASURES.index(measure), run["sensitivity"]
    return fmean(values[place] for values in layers.values()) if layer == "mean" else layers[layer][place]


def differences(
    one: dict[int, methods.Row], other: dict[int, methods.Row], metric: Callable[..., float]
) -> list[float]:
    """`one` minus `other` at equal seeds."""
    return [metric(one[seed]) - metric(other[seed]) for seed in one if seed in other]


def comparison(runs: Runs) -> Comparison:
    """Correlations among all runs and among parts of them; SNS reduces sensitivity by design."""
    found = [
        {
            "method": label(name),
            "objective": name.split()[0],
            "stabilized": name.endswith("sns"),
            "adversarial": not name.startswith("natural"),
            "seed": seed,
            "status": "finished",
            **{key.removeprefix("test/"): value for key, value in run.items() if key.startswith("test/")},
            **sensitivity_columns(run["sensitivity"]),
        }
        for name, by_seed in runs.items()
        for seed, run in by_seed.items()
    ]
    frame = pandas.DataFrame(found)
    plain, adversarial = ~frame["stabilized"], frame["adversarial"]
    among = {
        "all": plain | True,
        "adversarially trained": adversarial,
        "without SNS": plain,
        "without SNS, adversarially trained": plain & adversarial,
    }
    return compare(frame, accuracy="pgd", among=among)


def page(rows: methods.Rows) -> str:
    """docs/third_claim.md."""
    started = [row for row in rows if row["stage"] == "confirm"]
    runs = finished(rows)
    result = comparison(runs)
    parts = [introduction(started), answer(runs, result), exceptions(runs, result), tables(runs, result)]
    return "\n".join(line for part in (*parts, methods.unfinished(started)) for line in part).rstrip() + "\n"


def introduction(started: methods.Rows) -> Iterator[str]:
    seeds = sorted({row["seed"] for row in started})
    yield from (
        "# The third claim: are more robust networks less sensitive?",
        "",
        "The paper's third claim is that known adversarial training methods reduce neuron sensitivity too.",
        "",
        "`python -m benchmarks.third_claim` makes this page from the rows in",
        f"[benchmarks/results/methods.jsonl](../benchmarks/results/methods.jsonl): {len(started)} runs,",
        f"{len({row['name'] for row in started})} methods, seeds {seeds[0]} to {seeds[-1]}, commit"
        f" {', '.join(sorted({row['commit'] for row in started}))}.",
        "",
        "Data: scikit-learn's digits; the small network; Linf, epsilon 0.15 in pixel units. Accuracy is measured on",
        "500 test images under PGD-40, sensitivity on 200 validation images under PGD-10, both at the checkpoint with",
        "the best validated robust accuracy. Sensitivity is the mean over layers unless a layer is named. AutoAttack",
        "was not measured in these rows. Spearman's correlation is over runs; its 95 % interval is a bootstrap that",
        "resamples methods with all their seeds. Relative sensitivity is the activation difference over the",
        "activation: unlike the absolute measure it does not decrease where a network only shrinks its activations.",
        "`natural + sns` does not count as adversarially trained, although its stabilizer uses adversarial images.",
        "",
    )


def answer(runs: Runs, result: Comparison) -> Iterator[str]:
    """Sentences and a table from the intervals."""
    yield from (
        "## Do the known methods reduce sensitivity, and does it decrease with robustness?",
        "",
        f"Each of the {len(KNOWN)} adversarial objectives is compared with natural training at equal seeds, all",
        "without SNS: for how many the sensitivity is lower, undecided (the 95 % t-interval includes 0) or higher, and",
        "which are not lower.",
        "",
    )
    layers = next(iter(runs["natural none"].values()))["sensitivity"]
    cells = []
    for layer in ("mean", *layers):
        cells.append([layer])
        for measure in MEASURES[:2]:
            signs = {}
            for objective in KNOWN:
                pair = runs[f"{objective} none"], runs["natural none"]
                gaps = differences(*pair, lambda run, layer=layer, measure=measure: sensitivity(run, measure, layer))
                signs[objective] = sign(*t_interval(gaps)[1:])
            cells[-1].append(", ".join(str(list(signs.values()).count(wanted)) for wanted in (-1, 0, 1)))
            cells[-1].append(", ".join(objective for objective, found in signs.items() if found >= 0))
    headings = [text for measure in MEASURES[:2] for text in (f"{measure}: lower, undecided, higher", "not lower")]
    yield from table(["layer", *headings], cells)
    yield from ("", "As accuracy under PGD-40 increases, sensitivity (mean over layers)", "")
    for row in result.correlations.to_dict("records"):
        if row["layer"] == "mean":
            among = {"all": "methods"}.get(row["among"], f"methods, {row['among']}")
            yield f"* **{row['measure']}**, {row['methods']:.0f} {among}: {direction(row)}, {correlation(row)}"
    yield from ("", f"![Accuracy under PGD-40 against sensitivity]({PLOT.name})", "")


def exceptions(runs: Runs, result: Comparison) -> Iterator[str]:
    """Sentences on what contradicts the claim."""
    yield from ("## Exceptions and limits", "")
    found = result.correlations
    by_layer = found[(found["among"] == "adversarially trained") & (found["layer"] != "mean")]
    for measure in MEASURES[:2]:
        rows = by_layer[by_layer["measure"] == measure].to_dict("records")
        layers = [f"{row['layer']} ({correlation(row)})" for row in rows if sign(row["low"], row["high"]) == 0]
        yield f"* {measure.capitalize()}, by layer, among the adversarially trained: the correlation's interval"
        yield f"  {'includes 0 in ' + ', '.join(layers) if layers else 'excludes 0 in every layer'}."
        yield f"* Methods whose rank by {measure} sensitivity (1 is the least sensitive) is far from that by accuracy:"
        yield from (f"  * {text}" for text in displaced(result.methods, measure) or ["none"])
    changes = {objective: own_change(runs, objective) for objective in methods.OBJECTIVES}
    signs = {key: {name: sign(*change[1:]) for name, change in found.items()} for key, found in changes.items()}
    lower = {measure: listed(key for key, found in signs.items() if found[measure] == -1) for measure in MEASURES[:2]}
    rises, falls, same = (listed(key for key in signs if signs[key]["pgd"] == wanted) for wanted in (1, -1, 0))
    epochs = [run["best_epoch"] for run in runs["natural none"].values()]
    yield from (
        f"* SNS reduces sensitivity by design. Paired by seed it reduces the absolute one for {lower['absolute']}, the",
        f"  relative one for {lower['relative']}.",
        f"  Accuracy under PGD-40 increases for {rises}, decreases for {falls}, and shows no change",
        f"  for {same}. Where it does not increase, a less sensitive network is not more robust.",
        "* Checkpoints of natural training are selected by robust accuracy like the others and are therefore early:",
        f"  epochs {min(epochs)} to {max(epochs)} of 20. A fully trained network would be compared at another point.",
        "* A correlation over methods is not a cause. Sensitivity is measured under the attack itself: where the",
        "  attack fools the network, activations must have changed. This is one small data set, one architecture and",
        "  one epsilon, and an interval from so few methods is approximate.",
        "",
    )


def tables(runs: Runs, result: Comparison) -> Iterator[str]:
    yield from ("## Methods: mean and standard deviation over seeds, accuracies in percent, best mean in bold", "")
    accuracies = ("clean", "fgsm", "pgd")
    values = {
        name: [[100 * run[f"test/{attack}_accuracy"] for run in by_seed.values()] for attack in accuracies]
        for name, by_seed in runs.items()
    }
    best = [max(round(fmean(columns[place]), 2) for columns in values.values()) for place in range(len(accuracies))]
    cells = []
    for name, by_seed in runs.items():
        texts = [spread(column) for column in values[name]]
        texts = [f"**{t}**" if t.startswith(f"{top:.2f} ") else t for t, top in zip(texts, best, strict=True)]
        sensitivities = [[sensitivity(run, measure) for run in by_seed.values()] for measure in MEASURES]
        texts += [spread(column, digits) for column, digits in zip(sensitivities, (4, 3, 3), strict=True)]
        cells.append([label(name), str(len(by_seed)), *texts])
    yield from table(["method", "seeds", *accuracies, *MEASURES], cells)
    yield from ("", "## Spearman's correlation of sensitivity with accuracy under PGD-40 [95 % interval]", "")
    found = result.correlations.set_index(["among", "layer", "measure"])
    cells = []
    for among, layer in dict.fromkeys((among, layer) for among, layer, _ in found.index):
        of_measure = [found.loc[(among, layer, measure)] for measure in MEASURES[:2]]
        counts = (f"{of_measure[0][count]:.0f}" for count in ("methods", "runs"))
        cells.append([among, layer, *counts, *map(correlation, of_measure)])
    yield from table(["among", "layer", "methods", "runs", *MEASURES[:2]], cells)
    yield from ("", "## SNS minus none at equal seeds: mean [95 % t-interval], accuracy in percentage points", "")
    cells = []
    for objective in methods.OBJECTIVES:
        changes = own_change(runs, objective)
        cells.append([objective, *(interval(*change, 2 if name == "pgd" else 3) for name, change in changes.items())])
    yield from table(["objective", "pgd", *MEASURES[:2]], cells)
    yield ""


def own_change(runs: Runs, objective: str) -> dict[str, tuple[float, float, float]]:
    """{metric: mean, low, high} of SNS over an objective minus the objective alone."""
    none, sns = runs[f"{objective} none"], runs[f"{objective} sns"]
    metrics: dict[str, Callable[..., float]] = {"pgd": lambda run: 100 * run["test/pgd_accuracy"]}
    metrics |= {measure: lambda run, measure=measure: sensitivity(run, measure) for measure in MEASURES[:2]}
    return {name: t_interval(differences(sns, none, metric)) for name, metric in metrics.items()}


def displaced(table: pandas.DataFrame, measure: str) -> list[str]:
    """Methods whose ranks by sensitivity and by accuracy differ by a third of all methods or more."""
    sensitive = table[measure].rank(method="min").astype(int)
    robust = (-table["pgd_accuracy"]).rank(method="min").astype(int)
    far = (sensitive - robust).abs().sort_values(ascending=False)
    return [
        f"{table['method'][place]}: {sensitive[place]} by sensitivity, {robust[place]} by accuracy"
        for place in far.index
        if far[place] >= len(table) / 3
    ]


def direction(row: Any) -> str:
    return {0: "shows no trend", -1: "decreases", 1: "increases"}[sign(row["low"], row["high"])]


def correlation(row: Any) -> str:
    return interval(row["correlation"], row["low"], row["high"])


def listed(objectives: Any) -> str:
    found = list(objectives)
    return "all objectives" if len(found) == len(methods.OBJECTIVES) else names(found)


def write() -> None:
    rows = methods.rows()
    PAGE.write_text(page(rows))
    plot = drawn(robustness, comparison(finished(rows)))
    assert plot is not None
    save(plot, PLOT.with_suffix(""), ["png"])


if __name__ == "__main__":
    write()
