"""docs/assets/results.svg: the contrasts of the second claim, with the numbers that it shows in its description."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import DOCS
from benchmarks.evidence import choice, claim2
from benchmarks.evidence.findings import Contrast, Study, contrast
from nsr.plots.style import COLORS, name_rows, new_figure, plot, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PATH = DOCS / "assets" / "results.svg"
PRIMARY, EXPLORATORY = COLORS[1], COLORS[0]


def shown(one: Study) -> list[tuple[str, Contrast, bool]]:
    """Return (label, contrast, whether it is a primary one), top to bottom; contrasts of at least three seeds.

    Natural training, which SNS turns into adversarial training, is left out.
    """
    found = []
    for objective in choice.tested(one.plan):
        for arm in ("none", *(arm for arm in claim2.arms(one.plan) if arm not in ("none", "sns"))):
            each = contrast(one.arm(objective, "sns"), one.arm(objective, arm))
            if each.n > 2:
                found.append((f"{objective}: SNS - {arm}, n = {each.n}", each, arm == "none"))
    return found


@plot
def figure(studies: Sequence[Study]) -> Figure:
    """Return a panel a plan that has contrasts: differences in percentage points with their 95 % intervals."""
    studies = [one for one in studies if shown(one)]
    rows = [shown(one) for one in studies]
    made = new_figure(height=0.7 + 0.17 * sum(map(len, rows)), width=6.2)
    panels = made.subplots(len(studies), 1, squeeze=False, height_ratios=[1 + len(own) for own in rows])[:, 0]
    for panel, one, own in zip(panels, studies, rows, strict=True):
        name_rows(panel, [label for label, _, _ in own])
        panel.set_yticks(range(len(own)), [label for label, _, _ in own])
        panel.axvline(0, color="0.4", linewidth=0.8)
        for place, (_, each, tested) in enumerate(own):
            color = PRIMARY if tested else EXPLORATORY
            panel.plot([each.low, each.high], [place, place], color=color, linewidth=2.2 if tested else 1)
            panel.plot(each.difference, place, "D" if tested else "o", color=color)
        panel.set_title(one.plan["title"], loc="left")
    panels[-1].set_xlabel("difference in worst-case accuracy, points; diamonds: primary contrasts")
    return made


def numbers(studies: Sequence[Study]) -> str:
    """Return what the figure shows as JSON: {plan: {label: [difference, low, high]}}."""
    return json.dumps(
        {
            one.plan["name"]: {label: [round(value, 2) for value in each[1:4]] for label, each, _ in shown(one)}
            for one in studies
        }
    )


def write(studies: Sequence[Study], path: Path = PATH) -> None:
    import matplotlib

    with styled(), matplotlib.rc_context({"svg.hashsalt": "nsr", "svg.fonttype": "none"}):
        figure(studies).savefig(path, metadata={"Date": None, "Description": numbers(studies)})
