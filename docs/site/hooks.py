"""Add to the site what is generated (settings, API) and the files of the repository that its pages link to."""

from __future__ import annotations

import logging
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PLACES = [
    str(ROOT),
    str(Path(__file__).parent),
]  # of what is imported; mkdocs restores sys.path after it has loaded this file
LINK = re.compile(r"(?<!`)(!?\[[^\]]*\])\(([^)#\s]+)(#[^)\s]*)?\)")
MEMBERS = {"FeatureExtractor": "[__call__, remove]", "NeuronSensitivity": "[update, compute]"}  # beside the constructor
log = logging.getLogger("mkdocs.plugins.nsr")  # its warnings end a strict build


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, then every file outside of docs/ that a page links to, pages of these included."""
    sys.path[:0] = PLACES
    import settings

    files.append(File.generated(config, "reference/settings.md", content=settings.page()))
    files.append(File.generated(config, "reference/api.md", content=_api()))
    files.append(File.generated(config, "CHANGELOG.md", content=(ROOT / "CHANGELOG.md").read_text()))
    waiting = [(file.src_uri, file.content_string) for file in files.documentation_pages()]
    while waiting:
        page, text = waiting.pop()
        for place in sorted(set(_outside(page, text)) - set(files.src_uris)):
            own = (ROOT / place).read_text() if place.endswith(".md") else None
            file = File.generated(config, place, **({"content": own} if own else {"abs_src_path": str(ROOT / place)}))
            files.append(file)
            waiting += [(place, own)] if own else []
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links to files outside of docs/ at their copies in the site; name pages by title."""
    from equations import drawn

    here = page.file.src_uri

    def linked(match: re.Match[str]) -> str:
        place = _place(here, match[2])
        if place is None:
            return match[0]
        label, target = match[1], files.get_file_from_path(place)
        if target is not None and re.fullmatch(r"\[(docs/)?[\w/-]+\.md\]", label):
            title = re.search(r"^# (.+)$", target.content_string, flags=re.MULTILINE)
            label = f"[{title[1]}]" if title else label
        return f"{label}({posixpath.relpath(place, posixpath.dirname(here))}{match[3] or ''})"

    return drawn(LINK.sub(linked, markdown))


def _outside(page: str, text: str) -> list[str]:
    """The files outside of docs/ that a page links to."""
    return [place for match in LINK.finditer(text) if (place := _place(page, match[2])) and not _is_of_docs(place)]


def _is_of_docs(place: str) -> bool:
    return (ROOT / "docs" / place).exists()


def _place(page: str, link: str) -> str | None:
    """Where the file of a link lies in the site: docs/ is its root, all else keeps its path in the repository.

    None for a link to another host, and for one that is right as it is.
    """
    if ":" in link:
        return None
    home = ROOT if (ROOT / page).exists() else ROOT / "docs"  # of a page from outside of docs/, its links as written
    target = Path(posixpath.normpath(home / posixpath.dirname(page) / link))
    if (target / "README.md").is_file():
        target /= "README.md"
    if target.is_relative_to(ROOT / "docs"):
        return target.relative_to(ROOT / "docs").as_posix()
    if not target.is_file() or not target.is_relative_to(ROOT):
        return None  # mkdocs warns of it
    return target.relative_to(ROOT).as_posix()


def _api() -> str:
    """The page of what `import nsr` offers."""
    import nsr
    from nsr import plots

    lines = ["# API", "", "The names in `nsr.__all__`. They are loaded on first use: `import nsr` takes no time."]
    for name, home in nsr._HOME.items():
        members = MEMBERS.get(name, "false")
        options = f"heading: nsr.{name}, toc_label: nsr.{name}, members: {members}"
        lines += ["", f"::: {home}.{name}", f"    options: {{{options}}}"]
    lines += [
        "",
        "## nsr.plots",
        "",
        "Figures from data frames and tensors; [plots.md](../plots.md) has an example of each.",
    ]
    for name in plots.__all__:
        options = f"heading: nsr.plots.{name}, toc_label: nsr.plots.{name}, heading_level: 3"
        lines += ["", f"::: {getattr(plots, name).__module__}.{name}", f"    options: {{{options}}}"]
    return "\n".join([*lines, ""])
