"""The third claim on digits: are networks of more robust training methods less sensitive?

    python -m benchmarks.third_claim      docs/third_claim.md and docs/third_claim.png

Made from the rows of `python -m benchmarks.methods confirm`; nothing is trained. The correlations and the plot are
those of nsr.comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import copysign
from statistics import fmean
from typing import Any

import pandas

from benchmarks import common, methods
from benchmarks.common import DOCS, interval, names, spread, table
from nsr.comparison.frames import sensitivity_columns
from nsr.comparison.inference import ALPHA
from nsr.comparison.plots import drawn, robustness
from nsr.comparison.statistics import FEWEST_FOR_BOOTSTRAP, Comparison, compare
from nsr.plots.style import save

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
    parts = [introduction(started, runs, result), answer(runs, result), exceptions(runs, result), tables(runs, result)]
    return "\n".join(line for part in (*parts, methods.unfinished(started)) for line in part).rstrip() + "\n"


def introduction(started: methods.Rows, runs: Runs, result: Comparison) -> Iterator[str]:
    seeds = sorted({row["seed"] for row in started})
    yield from (
        "# The third claim: are more robust networks less sensitive?",
        "",
        "The paper's third claim is that known adversarial training methods reduce neuron sensitivity too.",
        "",
        *does_not_hold(runs, result),
        "",
        *common.wrapped(
            "`python -m benchmarks.third_claim` makes this page from the rows in "
            f"[benchmarks/results/methods.jsonl](../benchmarks/results/methods.jsonl): {len(started)} runs, "
            f"{len({row['name'] for row in started})} methods, seeds {seeds[0]} to {seeds[-1]}, commit "
            f"{', '.join(sorted({row['commit'] for row in started}))}."
        ),
        "",
        *common.wrapped(
            "Data: scikit-learn's digits; the small network; Linf, epsilon 0.15 in pixel units. Accuracy is measured "
            "on 500 test images under PGD-40, sensitivity on 200 validation images under PGD-10, both at the "
            "checkpoint with the best validated robust accuracy. Sensitivity is the mean over layers unless a layer is "
            "named. AutoAttack was not measured in these rows. Spearman's correlation is over runs; its 95 % interval "
            f"is a bootstrap that resamples methods with all their seeds (from {FEWEST_FOR_BOOTSTRAP} methods on), its "
            "p a permutation test over the methods' means with Holm's correction over all correlations of this page. "
            "Intervals generalize to other methods, or other seeds, on this data, network, radius and attack. Relative "
            "sensitivity is the activation difference over the activation: unlike the absolute measure it does not "
            "decrease where a network only shrinks its activations. `natural + sns` does not count as adversarially "
            "trained, although its stabilizer uses adversarial images."
        ),
        "",
    )


def does_not_hold(runs: Runs, result: Comparison) -> list[str]:
    """The first paragraph: what fails under AutoAttack and Holm's correction. The AutoAttack numbers are an audit's."""
    changes, found = reductions(runs), result.correlations
    lower = [key for key, (sign, _) in common.decided(changes).items() if key[1] == "mean" and sign < 0]
    mean = found[found["layer"] == "mean"]
    shown = found[found["holm_p"] <= ALPHA]
    layers = names(f"{row['measure']} {row['layer']} ({row['among']})" for row in shown.to_dict("records"))
    return common.wrapped(
        "**What does not hold.** Robustness is read from PGD-40 here. An audit found PGD-40 2.4 to 9.6 points above "
        "AutoAttack, differently for each method: ranks by robustness and every correlation below are biased, and none "
        f"is shown under AutoAttack. {(mean['holm_p'] <= ALPHA).sum()} of the {len(mean)} correlations of the mean "
        f"over layers survive Holm's correction over the {found['p'].count()} of this page; by layer survive {layers}. "
        f"That the known methods reduce sensitivity survives for {len(lower)} of {2 * len(KNOWN)} means over layers in "
        f"paired t-tests with Holm's correction over {len(changes)} comparisons, which assume normal differences; "
        "without that assumption, n is too small to decide: the smallest attainable p of permutation tests over five "
        f"seeds is {common.smallest_p(changes):.2g} after correction. SNS over PGD, +1.88 points, has Holm's p 0.17 "
        "over its nine objectives ([results.md](results.md)): no gain is shown. SNS over natural training is "
        "adversarial training with a feature loss. Within a method over seeds, the audit found no rank correlation of "
        "absolute sensitivity with robustness (0.00)."
    )


def reductions(runs: Runs) -> dict[tuple[str, str, str], list[float]]:
    """{(measure, layer, objective): differences from natural training at equal seeds}, all without SNS."""
    layers = next(iter(runs["natural none"].values()))["sensitivity"]
    return {
        (measure, layer, objective): differences(
            runs[f"{objective} none"],
            runs["natural none"],
            lambda run, layer=layer, measure=measure: sensitivity(run, measure, layer),
        )
        for layer in ("mean", *layers)
        for measure in MEASURES[:2]
        for objective in KNOWN
    }


def answer(runs: Runs, result: Comparison) -> Iterator[str]:
    """Sentences and a table from the corrected tests."""
    found = common.decided(reductions(runs))
    yield from (
        "## Do the known methods reduce sensitivity, and does it decrease with robustness?",
        "",
        f"Each of the {len(KNOWN)} adversarial objectives is compared with natural training at equal seeds, all",
        "without SNS: for how many the sensitivity is lower, undecided (p above 0.05 in a paired t-test after Holm's",
        f"correction over the {len(found)} comparisons of the table) or higher, and which are not lower.",
        "",
    )
    cells = []
    for layer in dict.fromkeys(layer for _, layer, _ in found):
        cells.append([layer])
        for measure in MEASURES[:2]:
            signs = {objective: found[measure, layer, objective][0] for objective in KNOWN}
            cells[-1].append(", ".join(str(list(signs.values()).count(wanted)) for wanted in (-1, 0, 1)))
            cells[-1].append(", ".join(objective for objective, one in signs.items() if one >= 0))
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
        layers = [f"{row['layer']} ({correlation(row)})" for row in rows if not row["holm_p"] <= ALPHA]
        where = f"not shown in {', '.join(layers)}" if layers else "shown in every layer"
        yield f"* {measure.capitalize()}, by layer, among the adversarially trained: the correlation is {where}."
        yield f"* Methods whose rank by {measure} sensitivity (1 is the least sensitive) is far from that by accuracy:"
        yield from (f"  * {text}" for text in displaced(result.methods, measure) or ["none"])
    signs = common.decided(own_changes(runs))
    lower = {name: listed(key for key in methods.OBJECTIVES if signs[key, name][0] < 0) for name in MEASURES[:2]}
    rises, falls, same = (
        listed(key for key in methods.OBJECTIVES if signs[key, "pgd"][0] == wanted) for wanted in (1, -1, 0)
    )
    epochs = [run["best_epoch"] for run in runs["natural none"].values()]
    yield from (
        f"* SNS reduces sensitivity by design. Paired by seed, after Holm's correction over {len(signs)} t-tests, it",
        f"  reduces the absolute one for {lower['absolute']}, the relative one for",
        f"  {lower['relative']}. Accuracy under PGD-40 increases for {rises},",
        f"  decreases for {falls}, and no change is shown for {same}. Where it does not increase, a less",
        "  sensitive network is not more robust.",
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
    yield from ("", "## Spearman's correlation of sensitivity with accuracy under PGD-40 [95 % interval], Holm's p", "")
    found = result.correlations.set_index(["among", "layer", "measure"])
    cells = []
    for among, layer in dict.fromkeys((among, layer) for among, layer, _ in found.index):
        of_measure = [found.loc[(among, layer, measure)] for measure in MEASURES[:2]]
        counts = (f"{of_measure[0][count]:.0f}" for count in ("methods", "runs"))
        cells.append([among, layer, *counts, *map(correlation, of_measure)])
    yield from table(["among", "layer", "methods", "runs", *MEASURES[:2]], cells)
    yield from (
        "",
        "## SNS minus none at equal seeds: mean [95 % interval], Holm's p, accuracy in percentage points",
        "",
    )
    yield from ("Accuracy: interval over seeds and images; sensitivity: over seeds. Paired t-tests over seeds.", "")
    changes, cells = own_changes(runs), []
    decided = common.decided(changes)
    for objective in methods.OBJECTIVES:
        images = methods.gained_images(runs[f"{objective} none"], runs[f"{objective} sns"])
        texts = [interval(*common.paired(changes[objective, "pgd"], images))]
        texts += [interval(*common.paired(changes[objective, name]), 3) for name in MEASURES[:2]]
        p = [decided[objective, name][1] for name in ("pgd", *MEASURES[:2])]
        cells.append([objective, *(f"{text} p {one:.2g}" for text, one in zip(texts, p, strict=True))])
    yield from table(["objective", "pgd", *MEASURES[:2]], cells)
    yield ""


def own_changes(runs: Runs) -> dict[tuple[str, str], list[float]]:
    """{(objective, metric): SNS over the objective minus the objective alone, at equal seeds}."""
    metrics: dict[str, Callable[..., float]] = {"pgd": lambda run: 100 * run["test/pgd_accuracy"]}
    metrics |= {measure: lambda run, measure=measure: sensitivity(run, measure) for measure in MEASURES[:2]}
    return {
        (objective, name): differences(runs[f"{objective} sns"], runs[f"{objective} none"], metric)
        for objective in methods.OBJECTIVES
        for name, metric in metrics.items()
    }


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
    """The trend that survives Holm's correction."""
    shown = bool(row["holm_p"] <= ALPHA)
    return {0: "no trend is shown", -1: "decreases", 1: "increases"}[int(shown and copysign(1, row["correlation"]))]


def correlation(row: Any) -> str:
    return f"{interval(row['correlation'], row['low'], row['high'])}, p {row['holm_p']:.2g}"


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
