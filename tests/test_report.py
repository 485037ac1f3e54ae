"""The report of a run: its numbers are those of the files, its sentences their consequence, its text no markup."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy
import pytest
from made_runs import make_evaluation, make_run

from nsr import plots
from nsr.comparison.names import attack_title
from nsr.metrics.layer_summary import LayerSummary
from nsr.pictures import Picture, write_pictures
from nsr.report.__main__ import main
from nsr.report.automatic import write_or_warn
from nsr.report.comparison import concordance
from nsr.report.files import read_files
from nsr.report.page import render
from nsr.report.sections import checks, headline, interventions, settings, training
from nsr.run.files import write_json, write_rows

HOSTILE = "</script><script>alert(1)</script>\x1b[31m\u202e"
ATTACKS = ("clean", "pgd", "autoattack")


class Page(HTMLParser):
    """The elements of a page, and its JSON."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.data, self._is_data = "", "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._is_data = dict(attrs).get("id") == "data"

    def handle_data(self, data):
        self.data, self.text = self.data + data * self._is_data, self.text + data * (not self._is_data)

    @property
    def sections(self):
        return json.loads(self.data)["sections"]


def measured(tmp_path: Path, *, counts: dict[str, int] | None = None, images: int = 500, **names: str) -> Path:
    """A run with an evaluation, whose images.csv gives these counts of correctly classified images."""
    counts = counts or {"clean": 425, "pgd": 372, "autoattack": 352}
    run = make_run(tmp_path / "run", best=2)
    accuracies = {name: count / images for name, count in counts.items()}
    attacks = {"clean": None, "pgd": {"steps": 40, "epsilon": 0.15, "norm": "linf"}, "autoattack": {"epsilon": 0.15}}
    folder = make_evaluation(run, "2030", accuracies, test_attacks=attacks)
    metrics = json.loads((folder / "evaluation.json").read_text())
    for name, count in counts.items():
        metrics |= dict(zip((f"test/{name}_low", f"test/{name}_high"), wilson(count, images), strict=True))
    write_json(folder / "evaluation.json", metrics)
    columns = ["image", "label", "class", *counts, *(f"{name}_prediction" for name in counts)]
    rows = []
    for image in range(images):
        label, correct = image % 2, [int(image < count) for count in counts.values()]
        shown = names.get(f"class{label}", str(label))
        rows.append([image, label, shown, *correct, *(label if flag else 1 - label for flag in correct)])
    write_rows(folder / "images.csv", columns, rows)
    return run


def wilson(count: int, images: int) -> tuple[float, float]:
    """Wilson's interval by its formula."""
    z, p = 1.959964, count / images
    middle, half = p + z**2 / (2 * images), z * (p * (1 - p) / images + z**2 / (4 * images**2)) ** 0.5
    return tuple((middle + sign * half) / (1 + z**2 / images) for sign in (-1, 1))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def no_drawing(monkeypatch):
    """Make figures and do not render them, which takes seconds."""
    monkeypatch.setattr("nsr.report.drawing.svg", lambda figure: "<svg {attributes}></svg>")


def test_a_page_has_the_numbers_of_its_files_and_nothing_of_them_is_markup(tmp_path, no_drawing):
    run = measured(tmp_path, class1=HOSTILE)
    folder = run / "evaluations" / "2030"
    write_json(folder / "checks.json", [{"name": HOSTILE, "title": "x", "triggered": True, "evidence": HOSTILE}])
    (run / "pictures").mkdir()
    (run / "pictures" / "evil.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>')
    entry = {"id": "a", "section": "examples", "alt": HOSTILE, "caption": HOSTILE, "data": {"neuron": 26}}
    entries = [{**entry, "file": name} for name in ("evil.svg", "../metrics.csv", "missing.png")]
    write_json(run / "pictures" / "index.json", entries)
    text = render(read_files(run))
    page = Page(text)

    found = page.sections["result"]["accuracies"]
    metrics = json.loads((folder / "evaluation.json").read_text())
    assert {name: row["accuracy"] for name, row in found.items()} == pytest.approx(
        {name: metrics[f"test/{name}_accuracy"] for name in (*ATTACKS, "worst_case")} | {"fgsm": 0.6}
    )
    epochs = page.sections["training"]["epochs"]
    for number, row in enumerate(rows(run / "metrics.csv")):
        assert {name: epochs[name][number] for name in row} == pytest.approx({n: float(v) for n, v in row.items()})
    means = page.sections["sensitivity"]["means"]["after"]
    for layer in means:
        own = [float(r["absolute"]) for r in rows(run / "sensitivity.csv") if (r["epoch"], r["layer"]) == ("2", layer)]
        assert means[layer]["absolute"] == pytest.approx(numpy.mean(own), rel=1e-5)
    classes = page.sections["robustness"]["classes"]
    assert classes["robust"] == pytest.approx([176 / 250, 176 / 250]) and classes["images"] == [250, 250]
    shown = {attributes["data-value"] for _, attributes in page.tags if "data-value" in attributes}
    assert {str(352 / 500), str(372 / 500)} <= shown
    assert page.sections["examples"]["pictures"] == [{"neuron": 26}]

    assert [tag for tag, _ in page.tags].count("script") == 2
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", text)
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "</script><script>alert(1)" in page.text  # shown as text
    assert "\\x1b[31m\\u202e" in page.text
    assert not re.search(r'(src|href)="(?!#|data:)', text)
    assert "default-src 'none'" in text


def test_a_later_evaluation_on_fewer_images_replaces_no_row(tmp_path):
    run = measured(tmp_path)
    before = headline.rows_of(read_files(run))
    folder = make_evaluation(run, "2031-01-01", {"clean": 0.1, "pgd": 0.05, "square": 0.07}, n_examples=20)
    write_rows(folder / "classes.csv", ["class", "images"], [["a", 20]])
    found = headline.rows_of(read_files(run))
    assert {name: found[name] for name in before if name != "worst_case"} == {
        name: row for name, row in before.items() if name != "worst_case"
    }
    assert (found["square"].accuracy, found["square"].images) == (0.07, 20)
    assert found["worst_case"].source == "2031-01-01"  # which measured other attacks
    folder = make_evaluation(run, "2032-01-01", {"clean": 0.2}, epsilon=0.01)  # another threat model
    assert set(headline.rows_of(read_files(run))) == {"clean", "worst_case"}


def test_the_worst_case_is_said_to_be_of_the_threat_model(tmp_path):
    run = measured(tmp_path)
    make_evaluation(run, "2031-01-01", {"clean": 0.9, "pgd": 0.5, "worst_case": 0.4, "curve_x2": 0.01})
    files = read_files(run)
    text = headline.summary(files, headline.rows_of(files))
    assert "in its threat model (L-infinity, epsilon" in text


def test_images_that_are_cut_short_are_not_counted(tmp_path, no_drawing):
    run = measured(tmp_path)
    folder = max((run / "evaluations").iterdir())
    (folder / "classes.csv").unlink(missing_ok=True)
    lines = (folder / "images.csv").read_text().splitlines(keepends=True)
    assert headline.rows_of(read_files(run))["clean"].images == len(lines) - 1
    (folder / "images.csv").write_text("".join(lines[: len(lines) // 2]))
    files = read_files(run)
    page = Page(render(files))
    assert page.sections["result"]["accuracies"]["clean"]["images"] == 0
    assert "classes" not in page.sections["robustness"] and any("images.csv" in text for text in files.problems)


@pytest.mark.parametrize("kept", [0, 0.5])
def test_sensitivities_that_are_cut_short_are_not_averaged(tmp_path, no_drawing, kept):
    run = measured(tmp_path)
    lines = (run / "sensitivity.csv").read_text().splitlines(keepends=True)
    best = [place for place, line in enumerate(lines) if line.startswith("2,")]
    (run / "sensitivity.csv").write_text("".join(lines[: best[int(kept * len(best))]]))
    names = [name for name in LayerSummary._fields if name != "most_sensitive"]
    layers = [[epoch, layer, *[0.1] * len(names), "0 1"] for epoch in (0, 1, 2) for layer in ("relu1", "relu2")]
    write_rows(run / "layers.csv", ["epoch", "layer", *names, "most_sensitive"], layers)
    files = read_files(run)
    page = Page(render(files))
    assert page.sections["sensitivity"]["means"] == {} and page.sections["sensitivity"]["layers"]["epoch"]
    assert any("sensitiv" in text and "section" not in text for text in files.problems)


@pytest.mark.slow
def test_pages_and_tables_are_utf8_in_any_locale(tmp_path):
    run = make_run(tmp_path / "run")
    ascii_only = {
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONUTF8": "0",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    for program, output in (("report", tmp_path / "page.html"), ("compare", tmp_path / "tables")):
        command = [sys.executable, "-m", f"nsr.{program}", str(run), "--output", str(output)]
        done = subprocess.run(command, env={**os.environ, **ascii_only}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "–" in (tmp_path / "page.html").read_text("utf-8")
    assert "†" in (tmp_path / "tables" / "comparison.md").read_text("utf-8")


def test_damaged_checks_are_named(tmp_path, no_drawing):
    run = measured(tmp_path)
    (run / "checks.json").write_text("[{")
    files = read_files(run)
    render(files)
    assert any("checks.json" in text for text in files.problems)


def test_the_result_in_words(tmp_path):
    files = read_files(measured(tmp_path))
    text = headline.summary(files, headline.rows_of(files))
    assert "Clean accuracy on 500 images: 85.0 % [81.6, 87.9]." in text
    assert "AutoAttack on 500 images: 70.4 % [66.3, 74.2]; PGD-40 overstates this by 4.0 points." in text
    assert "AutoAttack was not measured" not in text and "With 500 images the intervals are wide." in text
    write_json(files.measured / "checks.json", [{"name": "zero_gradients", "triggered": True}])
    assert "One check was triggered" in headline.summary(files, headline.rows_of(files))


def test_titles_of_attacks_say_what_is_not_usual():
    attacks = {"autoattack": {"version": "custom"}, "pgd": {"steps": 40, "restarts": 5, "epsilon": 0.3}}
    given = {"norm": "linf", "epsilon": 0.15, "test_attacks": attacks}
    assert attack_title("autoattack", given) == "AutoAttack (custom)"
    assert attack_title("pgd", given) == "PGD-40, 5 restarts, epsilon 0.3"
    assert attack_title("pgd_l2", given | {"test_attacks": {"pgd_l2": {"epsilon": 0.5}}}) == "PGD, L2 epsilon 0.5"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("failed", "This run failed: the loss is not finite (epoch 1 of 3)."),
        ("running", "This run is running: epoch"),
    ],
)
def test_a_run_without_result_says_what_is_missing(status, expected, tmp_path):
    run = make_run(tmp_path / "run", status=status, reason="the loss is not finite")
    made = headline.section(read_files(run))
    assert made.paragraphs[0].startswith(expected)
    assert made.code == ([f"python train.py resume={run}"] if status == "failed" else [])
    assert checks.section(read_files(run)).data == {"training": {}}
    assert interventions.section(read_files(run)) is None


def test_settings_beside_the_defaults(tmp_path):
    files = read_files(make_run(tmp_path / "run", "objective=trades", "epsilon=0.1", "trainer.max_epochs=3", "seed=0"))
    assert settings.changed(files.run.settings, "train") == {
        "objective": ("trades", "pgd"),
        "logger": ("csv", "wandb"),
        "trainer.max_epochs": (3, 60),
        "epsilon": (0.1, "${data.epsilon.${norm}}"),
    }


def test_epsilon_of_a_ramp_is_that_of_the_callback():
    from types import SimpleNamespace

    from nsr.callbacks import Ramp

    own = {"of": "train_attack", "epochs": 4, "start": 1, "initial": 0.2}
    ramp, attack = Ramp(**own), SimpleNamespace(scale=1.0)
    expected = [None]
    for epoch in range(6):
        trainer = SimpleNamespace(current_epoch=epoch, num_training_batches=1)
        ramp.on_train_batch_start(trainer, SimpleNamespace(train_attack=attack), None, 0)
        expected.append(8 / 255 * attack.scale)
    given = {"callbacks": {"mine": {"_target_": training.RAMP, **own}}, "train_attack": {"epsilon": "8/255"}}
    assert training.ramped_epsilon(given, range(7))[1:] == pytest.approx(expected[1:])


def test_agreement_of_rankings_has_known_values():
    alike = numpy.array([[1.0, 2.0, 3.0]] * 3)
    assert concordance(alike) == pytest.approx(1)
    assert concordance(numpy.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])) == pytest.approx(0)
    # W = (mean Spearman * (judges - 1) + 1) / judges
    values = numpy.random.default_rng(0).random((4, 7))
    correlations = numpy.corrcoef(values.argsort(1).argsort(1))[numpy.triu_indices(4, 1)]
    assert concordance(values) == pytest.approx((correlations.mean() * 3 + 1) / 4)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "error: nothing to report: give a run directory"),
        (["{}"], "holds no run of train.py"),
        (["{}/missing"], "error: there is no"),
        (["{}/run", "--output", "{}/run/config.yaml/x.html"], "cannot be written (Not a directory); give another file"),
        (["{}/run", "--output", ""], "--output: it is empty; give a path"),
        (["{}/run", "--output", "{}/run"], "a directory; give a file, such as"),
    ],
)
def test_bad_input_is_one_line(arguments, expected, tmp_path, capsys):
    if "{}/run" in arguments:
        make_run(tmp_path / "run", status="failed")
    assert main([argument.format(tmp_path) for argument in arguments]) == 1
    shown = capsys.readouterr().err
    assert expected in shown and shown.count("\n") == 1


def test_a_report_that_fails_is_one_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        write_or_warn(tmp_path / "no" / "such\x1b")
    (record,) = caplog.records
    assert record.getMessage().startswith("no report.html: FileNotFoundError") and "\x1b" not in record.getMessage()


def damage_csv(run: Path) -> None:
    for path in run.rglob("*.csv"):
        path.write_bytes(b"epoch,layer\n\xff\xfe\n" + b'"' * 1000)


def damage_json(run: Path) -> None:
    for path in run.rglob("*.json"):
        path.write_text("[" * 5000)


def empty_columns(run: Path) -> None:
    for path in run.rglob("*.csv"):
        path.write_text("a,b\n1,2\n")


def no_mappings(run: Path) -> None:
    for path in run.rglob("*.json"):
        path.write_text('{"callbacks": 3, "test/pgd_accuracy": "much", "verdicts": 1}')


@pytest.mark.slow
@pytest.mark.parametrize("damage", [damage_csv, damage_json, empty_columns, no_mappings])
def test_damaged_files_are_named_and_the_rest_is_shown(damage, tmp_path):
    run = measured(tmp_path)
    damage(run)
    page = Page(render(read_files(run)))
    assert {"result", "training", "settings", "files"} <= set(page.sections)


@pytest.mark.slow
def test_one_class_and_two_images(tmp_path):
    page = Page(render(read_files(measured(tmp_path, counts={"clean": 2, "pgd": 1}, images=2))))
    assert page.sections["robustness"]["confusion"]["images"] == [1, 1]
    (tmp_path / "other").mkdir()
    run = measured(tmp_path / "other", counts={"clean": 1, "pgd": 1}, images=1)
    assert Page(render(read_files(run))).sections["robustness"]["classes"]["robust"] == [1]


@pytest.mark.slow
def test_several_runs_are_compared(tmp_path):
    runs = [
        str(make_run(tmp_path / f"{name}{seed}", f"objective={name}", seed=seed, accuracies={"pgd": 0.4 + seed / 10}))
        for name in ("pgd", "trades")
        for seed in range(2)
    ]
    output = tmp_path / "page.html"
    assert main([*runs, "--output", str(output)]) == 0
    data = Page(output.read_text()).sections["result"]
    assert data["methods"]["pgd_accuracy"] == pytest.approx([0.45, 0.45])
    assert sorted(data["runs"]["seed"]) == [0, 0, 1, 1]


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")


@pytest.fixture(scope="module")
def browser():
    """Chromium; the tests of it are skipped where it is not installed."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield opened
        opened.close()


def looked_at(browser, page: Path, width: int, scheme: str):
    """Open a page and return its tab, what it logged and what it requested."""
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    logged, requested = [], []
    tab.on("console", lambda message: logged.append(message.text))
    tab.on("pageerror", lambda error: logged.append(str(error)))
    tab.on("request", lambda request: requested.append(request.url))
    tab.goto(page.as_uri())
    return tab, logged, [url for url in requested if not url.startswith("data:") and url != page.as_uri()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "failed", "comparison"])
def test_a_page_in_a_browser(kind, browser, tmp_path):
    from axe_playwright_python.sync_playwright import Axe

    page = tmp_path / "page.html"
    if kind == "run":
        runs = [measured(tmp_path, class1=HOSTILE)]
        figure = plots.landscape(numpy.zeros((1, 9, 9)))
        write_pictures(runs[0], [Picture("a", "landscape", figure, HOSTILE, HOSTILE, {"losses": [1.5]})])
    elif kind == "failed":
        runs = [make_run(tmp_path / "run", status="failed", reason=HOSTILE)]
    else:
        runs = [make_run(tmp_path / f"{seed}", seed=seed) for seed in range(2)]
    assert main([*map(str, runs), "--output", str(page)]) == 0
    assert page.stat().st_size < 5e6
    for width, scheme in ((1280, "light"), (1280, "dark"), (390, "light")):
        tab, logged, requested = looked_at(browser, page, width, scheme)
        assert logged == [] and requested == []
        assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        found = Axe().run(tab).response
        assert len(found["passes"]) > 15
        assert [each for each in found["violations"] if each["impact"] in ("serious", "critical")] == []
        tab.close()


@pytest.mark.slow
def test_tables_sort(browser, tmp_path):
    page = tmp_path / "page.html"
    assert main([str(measured(tmp_path)), "--output", str(page)]) == 0
    tab, _, _ = looked_at(browser, page, 1280, "light")
    column = (
        "[...document.querySelector('#result table').tBodies[0].rows].map((row) => Number(row.cells[2].dataset.value))"
    )
    for sign in (1, -1):
        tab.click("#result th button:has-text('accuracy')")
        assert tab.evaluate(column) == sorted([0.85, 0.744, 0.704, 0.704, 0.6], reverse=sign < 0)


@pytest.mark.parametrize(
    ("overrides", "weights"), [((), "initial, usually random"), (("model.weights=w.pt",), "that were loaded")]
)
def test_before_training_is_described_as_the_run_began(tmp_path, no_drawing, overrides, weights):
    text = render(read_files(make_run(tmp_path / "run", *overrides)))
    assert weights in text
    assert text.count("the network with") == 1
