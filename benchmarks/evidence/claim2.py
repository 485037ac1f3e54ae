"""The second claim in docs/results.md: contrasts, accuracies, attacks and tuning of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isnan, nan
from statistics import fmean, median

from benchmarks.common import bullet, names, spread, table, wrapped
from benchmarks.evidence import choice
from benchmarks.evidence.findings import ATTACKS, Contrast, Study, accuracy, by_arm, contrast, evaluation
from benchmarks.evidence.plan import LONGER, Plan, cells, settings
from nsr.comparison.inference import ALPHA, holm

ARMS = {
    "none": "the objective alone",
    "sns": "SNS, the most sensitive neurons",
    "random": "as many random neurons, the term scaled to that of SNS",
    "all": "all neurons",
    "clean": "clean cross-entropy with a weight instead of a term",
    "least": "as many of the least sensitive neurons, the term scaled to that of SNS",
    "activation": "an L1 penalty on all outputs of both views; its weights shrink them about as much as those of SNS",
    "smoothing": "label smoothing",
    LONGER: "the objective alone for more steps, in about the time of SNS",
}


def primary(one: Study) -> dict[str, tuple[Contrast, float]]:
    """Return {objective: its primary contrast, Holm's p over them; nan before the seeds of all are complete}."""
    pair, planned = one.plan["confirm"]["primary"], len(one.plan["confirm"]["seeds"])
    found = {name: contrast(*(one.arm(name, arm) for arm in pair)) for name in choice.tested(one.plan)}
    complete = all(each.n == planned for each in found.values())
    corrected = holm(each.p if complete else nan for each in found.values()).p.tolist()
    return {key: (each, p) for (key, each), p in zip(found.items(), corrected, strict=True)}


def verdict(found: Contrast, p: float) -> str:
    """Return what the test of a primary contrast says, and no more."""
    if isnan(p):
        return "undecided"
    if p > ALPHA:
        return "no gain was shown"
    return "a gain was shown" if found.difference > 0 else "a loss was shown"


def short(one: Study) -> list[str]:
    """Return the sentences on a plan's primary contrasts."""
    groups: dict[str, list[str]] = {}
    for objective, (found, p) in primary(one).items():
        groups.setdefault(verdict(found, p), []).append(f"{objective} ({found.text() or 'no paired runs yet'})")
    said = "; ".join(f"{text} for {names(members)}" for text, members in groups.items())
    done = sum(row["stage"] == "confirm" for row in one.finished)
    return bullet(
        f"**Claim 2, {one.plan['title']}**: {said}. In parentheses, SNS minus the objective alone under the worst "
        f"case, points. {done} of {n_confirm(one.plan)} confirmatory runs are complete"
        f"{'' if 'undecided' in groups or done == n_confirm(one.plan) else ', all of these contrasts among them'}."
    )


def advice(studies: Sequence[Study]) -> list[str]:
    """Return what follows for the choice of `stabilizer`; nothing before a plan's primary contrasts are decided."""
    found = {one.plan["title"]: {name: verdict(*each) for name, each in primary(one).items()} for one in studies}
    decided = {title: said for title, said in found.items() if "undecided" not in said.values()}
    if not decided:
        return []

    def those(wanted: str) -> str:
        own = {title: [name for name, each in said.items() if each == wanted] for title, said in decided.items()}
        where = "; ".join(f"{names(members)} on {title}" for title, members in own.items() if members)
        count = sum(map(len, own.values()))
        return f"{count or 'none'} {'shows' if count < 2 else 'show'} {wanted.removesuffix(' was shown')}" + (
            f" ({where})" if where else ""
        )

    text = (
        f"Of {sum(map(len, decided.values()))} primary contrasts ({'; '.join(decided)}), {those('a gain was shown')} "
        f"and {those('a loss was shown')}. {together(studies)} Where no gain was shown, nothing here justifies the "
        "cost of SNS for robustness alone: take `stabilizer=none`, or measure the gain on your data."
    )
    for one in filter(equal_cost, studies):
        text += (
            f" Against the objective alone, trained for more steps in about the time of SNS, SNS is at "
            f"{at_equal_cost(one)} points ({one.plan['title']}; exploratory, and short trainings profit most from more "
            "steps)."
        )
    return wrapped(
        f"{text} The default experiment trains with SNS because that is what this package measures, not because it was "
        "shown to be more robust."
    )


def together(studies: Sequence[Study]) -> str:
    """Say which contrasts remain when all plans are corrected as one."""
    found = {f"{name} on {one.plan['title']}": each for one in studies for name, each in primary(one).items()}
    decided = {name: each.p for name, (each, p) in found.items() if not isnan(p)}
    corrected = dict(zip(decided, holm(decided.values()).p.tolist(), strict=True))
    kept = [name for name, p in corrected.items() if p <= ALPHA]
    return (
        f"Each plan is corrected by itself; corrected over all of them together, {names(kept) if kept else 'none'} "
        f"remain{'s' * (len(kept) < 2)} (smallest p {min(corrected.values()):.2g})."
    )


def n_confirm(plan: Plan) -> int:
    """Return the number of confirmatory runs of the whole plan."""
    everything = {objective: {arm: ["any"] for arm in plan["arms"]} for objective in plan["objectives"]}
    return sum(cell.stage == "confirm" for cell in cells(plan, everything))


def section(one: Study) -> Iterator[str]:
    """Yield the tables of a plan."""
    plan = one.plan
    yield from (f"### {plan['title'][0].upper()}{plan['title'][1:]}", "", *wrapped(setting(one)), "")
    yield from (*primary_table(one), "", *wrapped(cost(one)), "")
    if len(plan["arms"]) > 2:
        yield from ("Exploratory contrasts, no verdict: worst case of the best checkpoint, percentage points.", "")
        yield from (*arms_table(one), "")
        if "activation" in plan["arms"]:
            yield from (*wrapped(shrinkage(one)), "")
    yield from ("SNS minus none under each attack, exploratory, percentage points.", "", *attacks_table(one), "")
    yield from wrapped(f"Accuracies in percent, mean and standard deviation over seeds. {legend(one)}")
    yield ""
    yield from (*accuracy_table(one), "")
    if plan.get("standard"):
        yield from (*standard(one), "")
    if plan.get("tuning"):
        yield from (*tuning(one), "")


def setting(one: Study) -> str:
    plan, finished = one.plan, one.finished
    hours = sum(row["cpu_seconds"] for row in finished) / 3600
    images = names(sorted({f"{row['best']['n_images']:,}" for row in finished if row["stage"] == "confirm"}))
    commits, machines, data = (
        names(sorted({row[key][:count] for row in finished}))
        for key, count in (("commit", None), ("machine", None), ("data", 12))
    )
    if not finished:
        return "No run is complete."
    return (
        f"Plan: [{plan['name']}.yaml](../benchmarks/evidence_plans/{plan['name']}.yaml). Training: "
        f"`{' '.join(plan['training'])}`. Evaluation: `{' '.join(plan['evaluation'])}`. An image counts under the "
        "worst case if it is correctly classified without and under each of the attacks. Test images, the same in "
        f"every run: {images}. {len(finished)} runs are complete; they took {hours:.2f} hours of one core. Machine: "
        f"{machines}; commits {commits}; SHA-256 over the data's pixels and labels: {data}."
    )


def primary_table(one: Study) -> list[str]:
    """Return the primary contrasts, the only tests of claim 2; no p before the seeds are complete."""
    least, planned = choice.smallest_differences(one.plan, one.finished), len(one.plan["confirm"]["seeds"])
    lines = []
    for objective, (found, p) in primary(one).items():
        numbers = map(number, (nan if isnan(p) else found.p, p, least.get(objective, nan)))
        lines.append([objective, f"{found.n} of {planned}", found.text(), *numbers, verdict(found, p)])
    headings = ["objective", "seeds", "SNS minus none, worst case", "p", "Holm's p", "detects", "verdict"]
    return table(headings, lines)


def started(one: Study) -> list[str]:
    """Return the objectives that have a complete pair of runs."""
    return [name for name in one.plan["objectives"] if one.arm(name, "sns").keys() & one.arm(name, "none").keys()]


def number(value: float) -> str:
    return "" if isnan(value) else f"{value:.2g}"


def cost(one: Study) -> str:
    """Return the sentences on the processor time of the arms."""
    if not started(one):
        return "Arms have equal steps, not equal cost."
    text = (
        f"Arms have equal steps, not equal cost: a training with SNS took {times_of_none(one, 'sns')} times the "
        "processor time of one without at the same seed (median, start included). In that time the objective alone "
        "could train longer, so the contrast favors SNS: a gain shown at equal steps need not hold at equal cost."
    )
    if not equal_cost(one):
        return text
    return (
        f"{text} At about equal cost, exploratory: arm `{LONGER}` takes {times_of_none(one, LONGER)} times the time of "
        f"none; SNS minus `{LONGER}`: {at_equal_cost(one)}."
    )


def equal_cost(one: Study) -> dict[str, Contrast]:
    """Return {objective: SNS minus the objective alone for about the time of SNS}, of those that have run."""
    found = {name: contrast(one.arm(name, "sns"), one.arm(name, LONGER)) for name in one.plan["objectives"]}
    return {name: each for name, each in found.items() if each.n}


def at_equal_cost(one: Study) -> str:
    return names(f"{name} {each.text()} (n = {each.n})" for name, each in equal_cost(one).items())


def times_of_none(one: Study, arm: str) -> str:
    """'1.20 (pgd), 1.31 (fast)': processor time of a training, start included, median over the seeds of both."""
    ratios = []
    for objective in one.plan["objectives"]:
        none, own = (one.arm(objective, name) for name in ("none", arm))
        pairs = [(own[seed], none[seed]) for seed in own.keys() & none.keys()]
        if pairs:
            ratio = median(first["train_cpu_seconds"] / second["train_cpu_seconds"] for first, second in pairs)
            ratios.append(f"{ratio:.2f} ({objective})")
    return names(ratios)


def arms_table(one: Study) -> list[str]:
    """Contrasts of all pairs of arms that say something about SNS."""
    others = [arm for arm in arms(one.plan) if arm not in ("sns", "none")]
    pairs = [("sns", arm) for arm in others] + [(arm, "none") for arm in others]
    objectives = started(one)
    lines = []
    for first, second in pairs:
        found = [contrast(one.arm(name, first), one.arm(name, second)).text() for name in objectives]
        lines.append([f"{first} - {second}", *found])
    return table(["contrast", *objectives], lines)


def shrinkage(one: Study) -> str:
    """Return how much the arms that are to shrink activations alike do so."""
    said = []
    for arm in ("sns", "activation"):
        each = []
        for objective in started(one):
            own, none = one.arm(objective, arm), one.arm(objective, "none")
            ratios = [
                evaluation(own[seed])["sensitivity"][layer][2] / evaluation(none[seed])["sensitivity"][layer][2]
                for seed in own.keys() & none.keys()
                for layer in evaluation(none[seed])["sensitivity"]
            ]
            each += [f"{fmean(ratios):.2f} ({objective})"] if ratios else []
        said += [f"`{arm}` {names(each)}"] if each else []
    return f"Mean activation on test images relative to that of none, over layers and equal seeds: {'; '.join(said)}."


def arms(plan: Plan) -> list[str]:
    """Return the names of all arms, that of equal cost included."""
    return [*plan["arms"], *([LONGER] if "equal_cost" in plan["confirm"] else [])]


def attacks_table(one: Study) -> list[str]:
    headings = ["objective", *ATTACKS, "worst case", "worst case, last checkpoint"]
    lines = []
    for objective in started(one):
        pair = [one.arm(objective, arm) for arm in ("sns", "none")]
        found = [contrast(*pair, attack) for attack in (*ATTACKS, "worst_case")]
        lines.append([objective, *(each.text() for each in (*found, contrast(*pair, "worst_case", "last")))])
    return table(headings, lines)


def legend(one: Study) -> str:
    return "Arms: " + "; ".join(f"{arm}: {ARMS[arm]}" for arm in arms(one.plan)) + "."


def accuracy_table(one: Study) -> list[str]:
    made = choice.choose(one.plan, one.finished)
    headings = ["objective", "arm", "setting", "seeds", *ATTACKS, "worst case", "worst case, last", "training, s"]
    lines, planned = [], [(objective, arm) for objective in one.plan["objectives"] for arm in arms(one.plan)]
    for objective, arm in sorted(one.runs, key=[*planned, *one.runs].index):  # the reference last
        own = list(one.arm(objective, arm).values())
        values = [spread([accuracy(row, attack) for row in own]) for attack in (*ATTACKS, "worst_case")]
        values.append(spread([accuracy(row, "worst_case", "last") for row in own]))
        values.append(f"{median(row['train_cpu_seconds'] for row in own):.0f}")
        chosen = " ".join(made.get(objective, {}).get("none" if arm == LONGER else arm, [])) or "default"
        lines.append([objective, arm, chosen, str(len(own)), *values])
    return table(headings, lines)


def standard(one: Study) -> Iterator[str]:
    """Yield the reduced attacks beside AutoAttack's standard version on the same images."""
    lines, gaps = [], []
    for (objective, arm), own in by_arm(one.rows, "standard").items():
        for seed, row in own.items():
            reduced, whole = accuracy(row, "worst_case"), accuracy(row, "autoattack")
            gaps.append(reduced - whole)
            lines.append([objective, arm, str(seed), str(row["best"]["n_images"]), f"{reduced:.1f}", f"{whole:.1f}"])
    text = "No run has been evaluated by AutoAttack's standard version yet."
    if gaps:
        text = (
            f"The reduced attacks beside AutoAttack's standard version on the same images, {len(gaps)} runs: the worst "
            f"case under the reduced ones is {fmean(gaps):.2f} points higher on average, {max(gaps):.2f} at most."
        )
    yield from wrapped(text)
    if gaps:
        headings = ["objective", "arm", "seed", "images", "reduced worst case, %", "AutoAttack standard, %"]
        yield from ("", *table(headings, lines))


def tuning(one: Study) -> Iterator[str]:
    """Yield all tuning runs."""
    plan, finished = one.plan, one.finished
    made, lines = choice.choose(plan, finished), []
    for objective in plan["objectives"]:
        for arm in plan["arms"]:
            for setting_ in settings(plan, objective, arm):
                own = [row for row in choice.tuned(finished, objective, arm) if row["setting"] == " ".join(setting_)]
                taken = made.get(objective, {}).get(arm) == list(setting_)
                values = [100 * choice.robust(row) for row in own]
                each = ", ".join(f"{value:.1f}" for value in values)
                mean = f"{fmean(values):.2f}" if values else ""
                lines.append([objective, arm, " ".join(setting_), each, f"**{mean}**" if taken else mean])
    yield from wrapped(
        f"Tuning, {sum(row['stage'] in ('rate', 'tune') for row in finished)} runs, as many for each arm: robust "
        "accuracy on validation images at the best epoch, percent. The bold setting was taken, before the first test "
        "image of its arm was used."
    )
    yield from ("", *table(["objective", "arm", "setting", "each seed", "mean"], lines))
