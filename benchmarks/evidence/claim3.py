"""The third claim in docs/results.md: sensitivity of known methods, between methods and within them over seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks.common import bullet, names, spread, table, wrapped
from benchmarks.evidence.claim2 import setting, tuning
from benchmarks.evidence.findings import (
    MEASURES,
    Contrast,
    Runs,
    Study,
    accuracy,
    between,
    reduction,
    sensitivity,
    within,
)
from nsr.comparison.inference import ALPHA, Tested, holm

FEWEST = 5  # methods: the correlation of four has a p of 2/24 at least


class Correlation(NamedTuple):
    """A correlation of sensitivity with the worst case, and its permutation test."""

    among: str
    kind: str  # between methods, or within them over seeds
    measure: str
    methods: int
    rho: float
    test: Tested


def has_reference(one: Study) -> bool:
    """Whether the plan has natural training, without which it says nothing on this claim."""
    return "natural" in one.plan["objectives"] or "natural" in one.plan["confirm"]


def plans(studies: Sequence[Study], methods: Study) -> list[Study]:
    """Return the plans that are tested on this claim: `methods`, when complete, in place of those whose runs it has."""
    found = list(filter(has_reference, studies))
    if not is_complete(methods):
        return found
    return [methods, *(one for one in found if one.plan["name"] not in methods.plan["with"])]


def is_complete(one: Study) -> bool:
    """Whether the arms of this claim, natural training included, have all planned seeds; before, nothing is tested."""
    confirm = one.plan["confirm"]
    arms = one.plan["arms"].keys() & {"none", "sns"}
    wanted = {(name, arm): confirm["seeds"] for name in one.plan["objectives"] for arm in arms}
    wanted |= {("natural", "none"): confirm["natural_seeds"]} if "natural_seeds" in confirm else {}
    return all(len(one.arm(*arm)) == len(seeds) for arm, seeds in wanted.items())


def reductions(runs: Runs) -> dict[tuple[str, str], tuple[Contrast, float]]:
    """Return {(objective, measure): known method minus natural training at equal seeds, Holm's p}."""
    natural = runs.get(("natural", "none"), {})
    known = [objective for objective, arm in runs if arm == "none" and objective != "natural"]
    found = {(name, measure): reduction(runs[name, "none"], natural, measure) for name in known for measure in MEASURES}
    corrected = holm(each.p for each in found.values()).p.tolist()
    return {key: (each, p) for (key, each), p in zip(found.items(), corrected, strict=True)}


def correlations(runs: Runs) -> list[tuple[Correlation, float]]:
    """Return the correlations among known methods and among those with SNS, and Holm's p over all of them.

    Natural training has a worst case of about 0 at every seed, so its seeds say nothing.
    """
    known = {objective: own for (objective, arm), own in runs.items() if arm == "none"}
    adversarial = [own for objective, own in known.items() if objective != "natural"]
    stabilized = [own for (_, arm), own in runs.items() if arm == "sns"]
    groups = {"known": list(known.values()), "known adversarial": adversarial, "stabilized": stabilized}
    found = []
    for among, members in groups.items():
        for measure in MEASURES:
            if len(members) >= FEWEST:
                found.append(Correlation(among, "between", measure, len(members), *between(members, measure)))
            if among != "known" and members:
                found.append(Correlation(among, "within", measure, len(members), *within(members, measure)))
    corrected = holm(each.test.p for each in found).p.tolist()
    return list(zip(found, corrected, strict=True))


def short(one: Study) -> list[str]:
    """Return the sentences on a plan's tests of the claim."""
    start = f"**Claim 3, {one.plan['title']}**: "
    if not is_complete(one):
        return bullet(f"{start}undecided, its runs are not complete.")
    parts, found = [], reductions(one.runs)
    smallest = len(found) * min((each.smallest_p for each, _ in found.values()), default=1)
    if not smallest <= ALPHA:
        parts.append("natural training has too few seeds to decide whether known methods are less sensitive")
    for measure in MEASURES if smallest <= ALPHA else ():
        own = {key[0]: both for key, both in found.items() if key[1] == measure}
        lower = [name for name, (each, p) in own.items() if p <= ALPHA and each.difference < 0]
        parts.append(
            f"{measure} sensitivity is lower than after natural training for {len(lower)} of {len(own)} methods"
        )
        if others := [name for name in own if name not in lower]:
            parts[-1] += f" (not shown for {names(others)})"
    for kind in ("between", "within"):
        own_kind = [(each, p) for each, p in correlations(one.runs) if each.kind == kind]
        shown: dict[str, list[str]] = {}
        for each, p in own_kind:
            if p <= ALPHA:
                shown.setdefault(each.among, []).append(f"{each.measure} {each.rho:+.2f}")
        groups = names(f"{among} methods ({names(values)})" for among, values in shown.items())
        correlation = f"correlation of sensitivity with robustness {kind} methods is shown"
        if own_kind:
            parts.append(f"a {correlation} for {groups}" if shown else f"no {correlation}")
    return bullet(f"{start}{'; '.join(parts)}.")


def section(one: Study) -> Iterator[str]:
    """Yield the tables of a plan; tests only when it is complete."""
    yield from (f"### {one.plan['title'][0].upper()}{one.plan['title'][1:]}: sensitivity", "")
    if joined := one.plan.get("with"):
        plans_ = names(f"[{name}.yaml](../benchmarks/evidence_plans/{name}.yaml)" for name in joined)
        text = f"The runs of {plans_} are tested here with those of one more plan, which was made after their results."
        yield from (*wrapped(f"{text} {setting(one)}"), "")
    lines = []
    for (objective, arm), own in one.runs.items():
        if arm in ("none", "sns"):
            values = [spread([sensitivity(row, measure) for row in own.values()], 3) for measure in MEASURES]
            robust = spread([accuracy(row, "worst_case", "last") for row in own.values()])
            lines.append([objective, arm, str(len(own)), *values, robust])
    yield from (*table(["objective", "arm", "seeds", *MEASURES, "worst case, %"], lines), "")
    if is_complete(one):
        yield from tests(one.runs)
    else:
        yield from ("Nothing is tested before all seeds are complete.", "")
    if one.plan.get("with") and one.plan.get("tuning"):
        yield from (*tuning(one), "")


def tests(runs: Runs) -> Iterator[str]:
    found = reductions(runs)
    headings = ["objective", "seeds", *(text for measure in MEASURES for text in (measure, "Holm's p"))]
    lines = []
    for name in dict.fromkeys(name for name, _ in found):
        own = [found[name, measure] for measure in MEASURES]
        lines.append([name, str(own[0][0].n), *(text for each, p in own for text in (each.text(3), f"{p:.2g}"))])
    yield from ("Known methods minus natural training at equal seeds, intervals over seeds.", "")
    yield from (*table(headings, lines), "", "Spearman's correlation of sensitivity with the worst case.", "")
    yield from table(
        ["among", "kind", "sensitivity", "methods", "correlation", "p", "smallest p", "Holm's p"],
        (
            [*each[:3], str(each.methods), f"{each.rho:+.2f}", *(f"{value:.2g}" for value in (*each.test, p))]
            for each, p in correlations(runs)
        ),
    )
    yield ""
