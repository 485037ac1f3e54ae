"""The table of docs/recipes.md, made from the recipes in conf/experiment: `python -m benchmarks.recipes`."""

from __future__ import annotations

import functools
import inspect
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from benchmarks import scaling
from benchmarks.common import DOCS, ROOT, table, wrapped
from nsr.objectives import required_views

PAGE = DOCS / "recipes.md"
BEGIN, END = "<!-- made by python -m benchmarks.recipes: begin -->", "<!-- end -->"
CONF = ROOT / "conf"
HEADINGS = ["command", "network", "training", "epochs x batch", "rate, decay", "clean / AutoAttack", "here", "hours"]
IMAGES, SIZE = 50_000, 32  # of CIFAR-10


class Recipe(NamedTuple):
    """One recipe: its name, the choices and settings of its file, and the lines of its head by their labels."""

    name: str
    choices: dict[str, Any]
    settings: dict[str, Any]
    head: dict[str, str]


def recipes() -> list[Recipe]:
    """Return the files of conf/experiment whose head has a line `# Published:`, by name."""
    return [read(path) for path in sorted((CONF / "experiment").glob("*.yaml")) if "\n# Published:" in path.read_text()]


def read(path: Path) -> Recipe:
    """Read a recipe; a head is a title, then lines `# Code: ...` and `# Published: ...`, which may go on."""
    comments = re.findall(r"^# (?!@)(.*)$", path.read_text().split("\ndefaults:")[0], flags=re.MULTILINE)
    title, code, published = re.split(r" ?\b(?:Code|Published): ", " ".join(comments))
    settings: Any = OmegaConf.to_container(OmegaConf.load(path))
    choices = {key.split("/")[1]: value for row in settings.pop("defaults") for key, value in row.items()}
    return Recipe(path.stem, choices, settings, {"title": title, "code": code, "published": published})


def setting(recipe: Recipe, group: str, name: str) -> Any:
    """Return a setting of the recipe, else that of its choice in the group."""
    choice: Any = OmegaConf.load(CONF / group / f"{recipe.choices.get(group, 'default')}.yaml")
    return recipe.settings.get(group, {}).get(name, choice.get(name))


def accuracies(recipe: Recipe) -> str:
    """Return '85.36 / 56.17', clean and AutoAttack accuracy as published, in percent."""
    found = re.search(r"clean ([\d.]+), AutoAttack ([\d.]+)", recipe.head["published"])
    return " / ".join(found.groups()) if found else "not stated here"


def cells(recipe: Recipe) -> list[str]:
    """Return the row of the table."""
    extra = " data.extra=FILE.npz" if "extra" in recipe.settings["data"] else ""
    optimizer = f"{setting(recipe, 'optimizer', 'lr')} {recipe.choices['scheduler']}"
    return [
        f"`python train.py experiment={recipe.name}{extra}`",
        recipe.choices["model"],
        " + ".join([recipe.choices["objective"], *recipe.choices.get("callbacks", [])]),
        f"{setting(recipe, 'trainer', 'max_epochs')} x {setting(recipe, 'data', 'batch_size')}",
        f"{optimizer}, {setting(recipe, 'optimizer', 'weight_decay'):g}",
        accuracies(recipe),
        "not measured here",
        hours(recipe),
    ]


def hours(recipe: Recipe) -> str:
    """Return '3.2 (1.6 to 5.9)', what one H100 is predicted to take, by the assumptions of docs/scaling.md."""
    objective = chosen("objective", recipe.choices["objective"])
    (attack,) = [name for row in objective.pop("defaults") for name in row.values()]
    steps = chosen("train_attack", attack).get("steps", 0)  # none: the perturbation of `free` costs no passes
    steps = recipe.settings.get("train_attack", {}).get("steps", steps)
    to_weights = len(required_views(instantiate(objective)))
    if "awp" in recipe.choices.get("callbacks", []):
        to_weights *= 2  # a pass of its own
    of_attack, of_training = work(recipe.choices["model"])
    images = setting(recipe, "trainer", "max_epochs") * IMAGES
    low, middle, high = (
        images * (steps * of_attack + to_weights * of_training) / (scaling.PEAK * part) / 3600
        for part in scaling.UTILIZATION
    )
    return f"{middle:.2g} ({high:.2g} to {low:.2g})"


@functools.cache
def work(model: str) -> tuple[float, float]:
    """Return the FLOPs of a pass of the attack and of a pass to the weights for an image."""
    settings = chosen("model", model)
    wanted = inspect.signature(get_class(settings["_target_"])).parameters
    own = {key: value for key, value in settings.items() if key in wanted or key == "_target_"}
    with torch.device("meta"):  # nothing is drawn
        net = instantiate(own, channels=3, classes=10, image_size=SIZE)
    return scaling.flops(net, SIZE, trains=False), scaling.flops(net, SIZE, trains=True)


def chosen(group: str, name: str) -> dict[str, Any]:
    """Return a choice of a group with those of the group that it starts from."""
    own: Any = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
    bases = [base for base in own.get("defaults", []) if isinstance(base, str) and base != "_self_"]
    return {key: value for base in bases for key, value in chosen(group, base).items()} | own


def made() -> str:
    """Return what stands between the markers of the page: the table, and each recipe's source and differences."""
    found = recipes()
    lines = [*table(HEADINGS, map(cells, found)), ""]
    for recipe in found:
        head = recipe.head
        text = f"`{recipe.name}`: {head['title']}. Code: {head['code']}. Published: {head['published']}."
        lines.append("* " + "\n  ".join(wrapped(text)))
    return "\n".join(lines)


def page(text: str) -> str:
    """Return the page with what stands between its markers made anew."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{made()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
