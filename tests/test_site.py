"""The site of `make docs`: it builds without a warning, lists every setting, and opens without a request."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
import yaml

from nsr import __all__ as public
from nsr.run.directory import flat
from tests.pages import ROOT

GROUPS = [path for path in sorted((ROOT / "conf").iterdir()) if path.is_dir() and path.name not in ("hydra", "sweep")]
OPENED = ("index.html", "tutorials/first_run.html", "reference/settings.html", "reference/api.html", "results.html")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site as `make docs` builds it, elsewhere."""
    folder = tmp_path_factory.mktemp("site")
    build = ["-m", "mkdocs", "build", "--quiet", "--strict", "-f", "docs/site/mkdocs.yml", "-d", str(folder)]
    variables = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, *build], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def cells(page: Path) -> list[list[str]]:
    """The text of each cell of each row of a page's tables."""
    rows = re.findall(r"<tr>(.*?)</tr>", page.read_text(), flags=re.DOTALL)
    found = [re.findall(r"<td[^>]*>(.*?)</td>", row, flags=re.DOTALL) for row in rows]
    return [[unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in row] for row in found if row]


def test_every_setting_is_listed_with_default_kind_and_meaning(site):
    """Read from the files themselves; a group's settings are merged over its choices."""
    listed = {row[0]: row for row in cells(site / "reference" / "settings.html")}
    for name, row in listed.items():
        if len(row) == 4:
            assert row[1] and row[3], f"{name} has no default or no meaning; conf/ needs a comment"
        else:
            assert len(row) == 2 and row[1], f"{name} has no description; its file needs a comment at the top"
    for folder in GROUPS:
        for path in folder.glob("*.yaml"):
            assert path.stem in listed
            text = path.read_text()
            package = re.search(r"^# @package (\S+)", text)
            place = re.sub(rf"\.{path.stem}$", ".NAME", package[1] if package else folder.name)
            for key, value in flat(yaml.safe_load(text)) if place != "_global_" else ():
                if key.rpartition(".")[2] not in ("_target_", "_partial_") and not key.startswith("defaults"):
                    row = listed[f"{place}.{key}"]
                    shown = "required" if value == "???" else str(value) if isinstance(value, str) else ""
                    assert shown in row[1] and len(row) == 4, (row, value)
    for command in ("train", "evaluate"):
        settings = yaml.safe_load((ROOT / "conf" / f"{command}.yaml").read_text())
        assert {key for key, _ in flat(settings) if not key.startswith(("defaults", "hydra"))} <= listed.keys()
    assert "one of linf, l2, l1" in listed["norm"][2]
    assert listed["stabilizer.top"][1:3] == ["0.1 (sns)", "int or float"]


def test_the_api_has_every_public_name(site):
    text = (site / "reference" / "api.html").read_text()
    named = set(re.findall(r"<h2[^>]*>\s*nsr\.(\w+)", text))
    assert named == set(public) - {"__version__"}
    assert "F_l(x)" in text and "neuron_dim: int = 1" in re.sub(r"<[^>]+>", "", text)  # of a docstring and a signature


def test_no_page_names_another_host_as_a_resource(site):
    for page in site.rglob("*.html"):
        text = page.read_text()
        for found in re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"([^\"]*)\"", text):
            assert "//" not in found, (page, found)
        for tag in re.findall(r"<link[^>]*>", text):
            assert 'rel="canonical"' in tag or "//" not in tag, (page, tag)


def test_equations_are_pictures_with_their_source_as_text(site):
    text = (site / "definitions.html").read_text()
    pictures = re.findall(r'<div class="equation" role="img" aria-label="([^"]+)">(.*?)</div>', text, flags=re.DOTALL)
    assert [drawn.count("<svg") for _, drawn in pictures] == [3, 1] and "```" not in text
    assert r"\mathrm{absolute}(l, m)" in pictures[0][0] and all("<use " in drawn for _, drawn in pictures)


def test_pages_open_without_a_request_and_never_scroll_sideways(site):
    sync_api = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("no Chromium here: the site is not opened")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        for width, scheme in ((1280, "light"), (390, "dark")):
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
            page, asked, errors = context.new_page(), [], []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.on("console", lambda line, errors=errors: errors.append(line.text) if line.type == "error" else None)
            for name in OPENED:
                page.goto((site / name).as_uri())
                assert page.locator("h1").is_visible()
                assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            if width == 1280:
                page.locator("input.md-search__input").click()
                page.keyboard.type("interventions")
                page.locator(".md-search-result__item").first.wait_for()
            assert all(url.startswith("file:") for url in asked), asked
            assert not errors
        browser.close()
