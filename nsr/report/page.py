"""The page: sections in their order, rendered into one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from nsr.errors import one_line
from nsr.report.files import PLACES, Picture, RunFiles, read_files
from nsr.report.numbers import plain
from nsr.report.parts import Figure, Section
from nsr.report.sections import checks, headline, interventions, robustness, sensitivity, settings, training
from nsr.run.files import SCHEMA, write_text
from nsr.run.plain_text import printable

TEMPLATES = Path(__file__).parent / "templates"
NAME = "report.html"
SECTIONS: dict[str, Callable[[RunFiles], Section | None] | None] = {  # in the page's order; None: pictures alone
    "result": headline.section,
    "checks": checks.section,
    "training": training.section,
    "examples": None,
    "robustness": robustness.section,
    "sensitivity": sensitivity.section,
    "features": None,
    "interventions": interventions.section,
    "landscape": None,
    "settings": settings.settings,
    "commands": settings.commands,
    "files": settings.files,
}
OF_PICTURES = {
    "examples": "Adversarial examples",
    "features": "What the most sensitive neurons respond to",
    "landscape": "Loss landscape",
}
UNBROKEN = re.compile(r"[A-Z]\w*-(?:\d+|infinity|AT)\b|[\d.,]+ %")  # L-infinity, PGD-40, 79.2 %
ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def write_report(directory: Path, output: Path | None = None) -> Path:
    """Write the report of a run or an evaluation, complete or not at all, and return its path.

    Args:
        output: the file; None: report.html in the directory.
    """
    path = output or directory / NAME
    write_text(path, render(read_files(directory.absolute())))
    return path


def render(run: RunFiles) -> str:
    """Return the page of a run."""
    pictures = list(run.pictures())
    sections = [made for name, make in SECTIONS.items() if (made := _made(name, make, run, pictures))]
    kind, name = "Evaluation" if run.is_evaluation else "Run", run.run.settings.get("name")
    title = " ".join(filter(None, [kind, str(name or ""), run.directory.resolve().name]))
    return html(title, str(run.directory), sections, run.problems)


def _made(
    name: str, make: Callable[[RunFiles], Section | None] | None, run: RunFiles, pictures: Iterable[Picture]
) -> Section | None:
    """Return a section with its pictures; of odd files one that says why it could not be made."""
    section = None
    try:
        section = make(run) if make else None
    except Exception as error:  # files of others may hold anything; the other sections stand
        run.problems.append(f"section {name}: {type(error).__name__}: {one_line(error)}")
        section = Section(name.capitalize(), name, ["This section could not be made from the files of the run."])
    own = [picture for picture in pictures if picture.section == name and name in PLACES]
    if not own:
        return section
    section = section or Section(OF_PICTURES[name], name)
    figures = [*section.figures, *(Figure(each.image, each.alt, each.caption) for each in own)]
    data = {**section.data, "pictures": [each.data for each in own]}
    return replace(section, figures=figures, data=data)


def html(title: str, place: str, sections: Sequence[Section], problems: Sequence[str]) -> str:
    """Return the HTML of sections, with the numbers of all of them as JSON; names cannot become markup."""
    content = {"schema": SCHEMA, "sections": {section.id: plain(section.data) for section in sections}}
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=title,
            place=place,
            sections=sections,
            problems=list(dict.fromkeys(problems)),
            style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_hash=digest,
            data=Markup(json.dumps(content, allow_nan=False).translate(ESCAPES)),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, (Markup, int, float)) else printable(value),
    )
    environment.filters |= {"picture": picture, "unbroken": unbroken}
    return environment


def unbroken(text: str) -> Markup:
    """Return an escaped text in which no line ends within a number and its %, or within the name of an attack."""
    escaped = str(escape(printable(text)))
    return Markup(UNBROKEN.sub(lambda match: f'<span class="whole">{match[0]}</span>', escaped))


def picture(figure: Figure) -> Markup:
    """Return a drawing of nsr's own as it is, any other one as an <img>, in which no script runs."""
    if isinstance(figure.image, str):
        attributes = Markup('role="img" aria-label="{}" focusable="false"').format(printable(figure.alt))
        return Markup(figure.image.replace("{attributes}", attributes, 1))
    kind = "png" if figure.image.startswith(b"\x89PNG") else "svg+xml"
    content = base64.b64encode(figure.image).decode()
    return Markup('<img src="data:image/{};base64,{}" alt="{}">').format(
        Markup(kind), Markup(content), printable(figure.alt)
    )
