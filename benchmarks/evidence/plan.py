"""Plans (benchmarks/evidence_plans/NAME.yaml) and the cells that they consist of: one training and its evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks.common import ROOT
from nsr.errors import InputError

PLANS = ROOT / "benchmarks" / "evidence_plans"
STAGES = ("rate", "tune", "confirm", "standard")
LONGER = "longer"  # arm: `none` for as many steps as take the time of SNS, plan["confirm"]["equal_cost"]
Plan = Mapping[str, Any]
Choices = Mapping[str, Mapping[str, Sequence[str]]]


class Cell(NamedTuple):
    """One training by train.py and, where `evaluation` is not empty, its evaluation by evaluate.py."""

    stage: str
    objective: str
    arm: str
    setting: str
    seed: int
    training: tuple[str, ...]
    evaluation: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """Twelve hexadecimal digits: SHA-256 of everything above."""
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()[:12]

    def named(self) -> dict[str, Any]:
        """Return what a row keeps of it."""
        return {**self._asdict(), "training": list(self.training), "evaluation": list(self.evaluation)}

    @property
    def title(self) -> str:
        """'confirm pgd sns seed 100'"""
        return " ".join(filter(None, (self.stage, self.objective, self.arm, self.setting, f"seed {self.seed}")))


def read_plan(name: str) -> dict[str, Any]:
    """Return a plan by its name in benchmarks/evidence_plans or by its path, with its 'name'.

    Errors:
        InputError: no such plan.
    """
    path = Path(name) if name.endswith(".yaml") else PLANS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in PLANS.glob("*.yaml")))
        raise InputError(f"no plan {name}; there are {known}, or give the path of a .yaml file")
    return {"name": path.stem, **yaml.safe_load(path.read_text())}


def cells(plan: Plan, choices: Choices) -> list[Cell]:
    """Return the cells in the order in which they run: after the choices, all arms of a seed before the next seed.

    Args:
        choices: {objective: {arm: overrides}} of `choice.choose`; cells that need one which is not there are left out.
    """
    tuning = [*_rate(plan), *_tune(plan, choices)] if "tuning" in plan else []
    return [*tuning, *_confirm(plan, choices)]


def chosen(choices: Choices, objective: str, arm: str) -> list[str] | None:
    """Return the overrides that tuning chose, the learning rate of `none` among them; None where it has not yet."""
    choice = choices.get(objective, {})
    if "none" not in choice or arm not in choice:
        return None
    return list(choice["none"]) if arm == "none" else [*choice["none"], *choice[arm]]


def _overrides(plan: Plan, objective: str, arm: str, *more: str, steps: int | None = None) -> tuple[str, ...]:
    steps = steps or plan["steps"][objective][arm] if "steps" in plan else None  # None: whole epochs
    length = () if steps is None else (f"trainer.limit_train_batches={steps}",)
    return (*plan["training"], *plan["objectives"][objective], *plan["arms"][arm], *length, *more)


def settings(plan: Plan, objective: str, arm: str) -> Sequence[Sequence[str]]:
    """Return the settings that tuning compares: a list for all objectives, or {objective: list} of equal lengths."""
    found = plan["tuning"][arm]
    return found[objective] if isinstance(found, Mapping) else found  # type: ignore[no-any-return]


def _rate(plan: Plan) -> Iterator[Cell]:
    """The learning rates of `none`, validation images only."""
    for seed in plan["tuning"]["seeds"]:
        for of_each in zip(*(settings(plan, name, "none") for name in plan["objectives"]), strict=True):
            for name, setting in zip(plan["objectives"], of_each, strict=True):
                yield _tuning(plan, "rate", name, "none", setting, seed)


def _tune(plan: Plan, choices: Choices) -> Iterator[Cell]:
    """The settings of the other arms, at the learning rate of `none`; arms take turns, as speed varies."""
    others = [arm for arm in plan["arms"] if arm != "none"]
    for seed in plan["tuning"]["seeds"]:
        for place in range(len(settings(plan, next(iter(plan["objectives"])), "none"))):
            for objective in plan["objectives"]:
                rate = chosen(choices, objective, "none")
                for arm in others if rate is not None else ():
                    setting = settings(plan, objective, arm)[place]
                    yield _tuning(plan, "tune", objective, arm, setting, seed, rate or ())


def _tuning(
    plan: Plan, stage: str, objective: str, arm: str, setting: Sequence[str], seed: int, rate: Sequence[str] = ()
) -> Cell:
    """A run of as many steps as those of `none`. train.py ends with one batch of test images, which is discarded."""
    own = (*rate, *setting, "+trainer.limit_test_batches=1")
    steps = plan["steps"][objective]["none"]
    return Cell(stage, objective, arm, " ".join(setting), seed, _overrides(plan, objective, arm, *own, steps=steps))


def _confirm(plan: Plan, choices: Choices) -> Iterator[Cell]:
    confirm = plan["confirm"]
    complete = all(
        chosen(choices, objective, arm) is not None for objective in plan["objectives"] for arm in plan["arms"]
    )
    for seed in confirm["seeds"] if complete else ():
        for objective in plan["objectives"]:
            for arm in plan["arms"]:
                training = _overrides(plan, objective, arm, *(chosen(choices, objective, arm) or ()))
                yield Cell("confirm", objective, arm, "", seed, training, tuple(plan["evaluation"]))
                if seed in confirm.get("standard_seeds", ()) and arm in confirm["primary"]:
                    yield Cell("standard", objective, arm, "", seed, training, tuple(plan["standard"]))
        if seed in confirm.get("natural_seeds", ()):
            training = (*plan["training"], *confirm["natural"])
            yield Cell("confirm", "natural", "none", "", seed, training, tuple(plan["evaluation"]))
    for seed in confirm["seeds"] if complete else ():
        for objective, steps in confirm.get("equal_cost", {}).items():
            rate = chosen(choices, objective, "none") or ()
            training = _overrides(plan, objective, "none", *rate, steps=steps)
            yield Cell("confirm", objective, LONGER, "", seed, training, tuple(plan["evaluation"]))
