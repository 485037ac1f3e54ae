"""Output of a comparison: the command, the tables in each format, and the plots."""

from __future__ import annotations

import logging
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy
import pandas
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from nsr.compare import compare, main, read_runs
from nsr.comparison import plots
from nsr.comparison.tables import decimals, sheets, spread
from nsr.comparison.writing import latex, latex_table, markdown, markdown_table, write
from nsr.plots.style import DARK, PAPER
from nsr.run.tables import Cell, Table
from tests.made_runs import make_evaluation, make_run

ROOT = Path(__file__).parent.parent.parent
OBJECTIVES = ("natural", "fast", "pgd", "trades")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """Four objectives with and without SNS, two seeds; one run failed, one still runs, one has a further evaluation."""
    root = tmp_path_factory.mktemp("sweep")
    number = 0
    for place, objective in enumerate(OBJECTIVES):
        for stabilizer in ("none", "sns"):
            for seed in (0, 1):
                robust = 0.3 + 0.1 * place + 0.02 * seed + 0.05 * (stabilizer == "sns")
                status = "failed" if number == 3 else "running" if number == 7 else "finished"
                make_run(
                    root / str(number),
                    f"objective={objective}",
                    f"stabilizer={stabilizer}",
                    seed=seed,
                    status=status,
                    reason="the loss is not finite" if status == "failed" else "",
                    accuracies={"pgd": robust, "fgsm": robust + 0.1},
                    level=1 - robust,
                )
                number += 1
    make_evaluation(root / "0", "2030", {"clean": 0.9, "autoattack": 0.25})
    return root


@pytest.fixture(scope="module")
def result(sweep):
    return compare(read_runs(sweep), resamples=200)


# ---------------------------------------------------------------- the command
@pytest.mark.slow
def test_the_command_shows_everything(sweep, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(sweep), "--output", "out", "--resamples", "200", "--label", "pgd + sns=ours"]) == 0
    text = capsys.readouterr().out
    assert "…" not in text  # nothing is cut off where it is piped
    for label in ("natural", "fast", "PGD-AT", "ours", "trades + sns"):
        assert f"│ {label} " in text
    assert "pgd + sns" not in text and "│ pgd " not in text
    assert re.search(r"│ natural \+ sns +│ 1 of 2 │", text)
    assert re.search(rf"{sweep}/3 +│ natural \+ sns │ 1 +│ failed +│ the loss is not finite \(epoch 1 of 3\)", text)
    assert re.search(rf"{sweep}/7 +│ fast \+ sns +│ 1 +│ running │ epoch 1 of 3, last change", text)
    assert "difference from PGD-AT at equal seeds" in text
    assert "runs that are unfinished, or lack an evaluation or an attack: 14; to finish them:" in text
    best = f"checkpoint={sweep}/1/checkpoints/best.ckpt"
    assert f"python {ROOT}/evaluate.py {best} 'test_attacks=[clean,autoattack]'" in text
    assert f"python {ROOT}/train.py resume={sweep}/3" in text
    assert "... 9 more: the column command of comparison.csv" in text
    written = {path.name for path in (tmp_path / "out").iterdir()}
    tables = {"comparison.csv", "methods.csv", "differences.csv", "correlations.csv", "comparison.md", "comparison.tex"}
    drawn = {f"{name}{end}" for name in ("accuracy", "robustness", "layers") for end in (".png", ".pdf", "_dark.png")}
    assert written == tables | drawn
    assert all(name in text for name in written)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to compare: give run directories or the folder of a sweep"),
        (["/nowhere"], "there is no '/nowhere'; give run directories, the folder of a sweep, or a pattern"),
        (["EMPTY"], "holds no run of train.py"),
        (["SWEEP", "--ouput", "x"], "unrecognized arguments: --ouput x; `python -m nsr.compare --help` lists"),
        (["SWEEP", "--accuracy", "apgd"], "accuracy is 'apgd'; it must be one of clean, fgsm, pgd"),
        (["SWEEP", "--label", "pgd"], "--label is ['pgd']; it must be METHOD=TEXT"),
        (["SWEEP", "--output", "/dev/null/x"], "--output: /dev/null/x cannot be written (Not a directory)"),
        (["SWEEP", "--output", ""], "--output: it is empty; give a path"),
        (["SWEEP", "--seed", "-1"], "--seed is -1; it must be a whole number at least 0"),
    ],
)
def test_bad_input_is_one_line(sweep, tmp_path, capsys, arguments, message):
    places = {"SWEEP": str(sweep), "EMPTY": str(tmp_path)}
    assert main([places.get(argument, argument) for argument in arguments]) == 1
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1
    assert message in text


def test_runs_of_other_threat_models_are_shown_when_asked(tmp_path, capsys):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", "epsilon=0.1")
    assert main([str(tmp_path), "--allow-different"]) == 0
    text = capsys.readouterr().out
    assert "│ PGD-AT + sns epsilon=0.15 " in text and "│ PGD-AT + sns epsilon=0.1 " in text
    assert "note  these runs differ in data or threat model" in text
    assert "a rank correlation needs at least 3 methods; there are 2" in text


def test_only_unfinished_runs_and_names_with_control_characters(tmp_path, capsys):
    make_run(tmp_path / "\x1b[31mrun", status="failed", reason="no\x1b[2Jmemory")
    assert main([str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "no\\x1b[2Jmemory (epoch 1 of 3)" in text
    assert "\x1b" not in text + (tmp_path / "out" / "comparison.md").read_text()
    assert text.count("\\x1b[31mrun") == 2  # in the table, and in the command that resumes it
    assert len(pandas.read_csv(tmp_path / "out" / "comparison.csv")) == 1
    assert not list((tmp_path / "out").glob("*.png"))


@pytest.mark.slow
def test_a_closed_pipe_is_no_error(sweep, tmp_path):
    program = f"set -o pipefail; {sys.executable} -m nsr.compare {sweep} --resamples 100 | head -n 1"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_a_reader_that_goes_away_ends_the_command_without_an_error(sweep, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main([str(sweep), "--resamples", "100"]) == 0


def test_help_is_quick():
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    program = "import sys; from nsr.compare import main; sys.argv[0] = '/usr/bin/nsr-compare'; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert done.stdout.startswith("usage: nsr-compare ") and "--allow-different" in done.stdout
    assert seconds < 1


# ---------------------------------------------------------------- tables
def test_files_hold_what_the_frames_hold(result, tmp_path):
    write(result, tmp_path)
    runs = pandas.read_csv(tmp_path / "comparison.csv")
    assert len(runs) == 16
    assert runs["status"].tolist() == result.runs["status"].tolist()
    for name in ("pgd_accuracy", "absolute/relu1", "relative"):
        numpy.testing.assert_allclose(runs[name], result.runs[name].astype(float), rtol=1e-15)
    means = pandas.read_csv(tmp_path / "methods.csv")
    numpy.testing.assert_allclose(means["pgd_accuracy"], result.methods["pgd_accuracy"], rtol=1e-15)
    assert pandas.read_csv(tmp_path / "correlations.csv")["among"].tolist() == result.correlations["among"].tolist()
    assert (
        (tmp_path / "differences.csv")
        .read_text()
        .startswith("method,baseline,metric,difference,low,high,pairs,over,p,")
    )


def test_the_numbers_of_a_table(result):
    table = sheets(result)[0]
    rows = {row[0].text: dict(zip(table.headings, row, strict=True)) for row in table.rows}
    # seeds 0 and 1: 0.5 and 0.52, standard deviation 0.02 / sqrt(2)
    assert rows["pgd"]["PGD-40"] == Cell("51.00 +- 1.41")
    assert rows["trades + sns"]["PGD-40"] == Cell("66.00 +- 1.41", best=True)
    assert [name for name, row in rows.items() if row["PGD-40"].best] == ["trades + sns"]
    assert rows["natural"]["AutoAttack"].text == "25.00 (of 1)"  # of two finished runs
    assert rows["pgd"]["AutoAttack"].text == "-"
    assert rows["natural + sns"]["PGD-40"].text == "35.00"
    assert rows["natural + sns"]["seeds"].text == "1 of 2"
    assert all(cell.best for cell in (row["clean"] for row in rows.values()))  # all equal
    wide = result.runs.assign(**{f"absolute/block{number}": 0.1 for number in range(9)})
    found = {sheet.caption: sheet for sheet in sheets(compare(wide, resamples=100))}[
        "absolute sensitivity by layer: mean +- standard deviation over seeds"
    ]
    assert found.headings[:2] == ["layer", "natural"]  # many layers are rows
    assert [row[0].text for row in found.rows] == ["relu1", "relu2", *(f"block{number}" for number in range(9))]


def test_digits_follow_the_smallest_number():
    assert decimals([0.5, 12.0]) == 3
    assert decimals([0.5, 0.00123]) == 5
    assert decimals([0.0, float("nan")]) == 3
    assert decimals([1e-9]) == 6
    assert spread(0.5, float("nan"), 3) == "0.500"
    assert spread(float("nan"), float("nan"), 3) == "-"


ODD_ROW = [Cell("[x] | {y}^2 ~ z\\w <1>"), Cell("-1.5", best=True), Cell("-")]
ODD = Table("50 % of a_b & c", ["method", "50 %", "a_b"], [ODD_ROW])


def test_markdown_is_well_formed(result):
    text = markdown(result)
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == len(sheets(result))
    assert all(len({len(re.findall(r"(?<!\\)\|", line)) for line in block}) == 1 for block in blocks)
    assert markdown_table(ODD)[2] == r"| [x] \| {y}^2 ~ z\w &lt;1&gt; | **-1.5** | - |"
    assert "**66.00 +- 1.41**" in text


def test_latex_has_all_rows_and_nothing_unescaped(result):
    text = latex(result)
    tables = re.findall(r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}(.*?)\\end\{tabular\}", text, flags=re.DOTALL)
    assert len(tables) == len(sheets(result))
    for (columns, body), sheet in zip(tables, sheets(result), strict=True):
        rows = re.findall(r"^    (.*) \\\\$", body, flags=re.MULTILINE)
        assert len(rows) == 1 + len(sheet.rows)
        assert all(len(re.findall(r"(?<!\\)&", row)) + 1 == len(columns) == len(sheet.headings) for row in rows)
        assert [body.count(f"\\{rule}rule") for rule in ("top", "mid", "bottom")] == [1, 1, 1]
    assert r"\textbf{66.00 $\pm$ 1.41}" in text
    odd = latex_table(ODD, "tab:x")
    assert r"{}[x] | \{y\}\textasciicircum{}2 \textasciitilde{} z\textbackslash{}w \textless{}1\textgreater{}" in odd
    assert r"\textbf{$-$1.5} & -- \\" in odd
    assert r"\caption{50 \% of a\_b \& c.}" in odd


# ---------------------------------------------------------------- plots
@pytest.fixture(scope="module")
def figures(result) -> dict[str, Figure]:
    drawn = {name: plots.drawn(getattr(plots, name), result) for name in ("accuracy", "robustness", "layers")}
    assert all(figure is not None for figure in drawn.values())
    return drawn  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["accuracy", "robustness", "layers"])
def test_everything_written_is_inside_a_column_and_large_enough(figures, name):
    figure = figures[name]
    assert figure.get_size_inches()[0] == 3.3
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    box = figure.get_tightbbox(renderer)  # inches, of all that is drawn
    width, height = figure.get_size_inches()
    assert -0.01 <= box.x0 < box.x1 <= width + 0.01
    assert -0.01 <= box.y0 < box.y1 <= height + 0.01
    texts = [artist for artist in figure.findobj(lambda artist: hasattr(artist, "get_fontsize")) if artist.get_text()]
    assert len(texts) > 10
    assert all(text.get_fontsize() >= 6 for text in texts)  # points


def test_the_points_are_the_runs(figures, result):
    finished = result.runs[result.runs["status"] == "finished"]
    for axes, measure in zip(figures["robustness"].axes, ("absolute", "relative"), strict=True):
        drawn = numpy.concatenate([numpy.column_stack(line.get_data()) for line in axes.lines])
        expected = finished[[measure, "pgd_accuracy"]].to_numpy(dtype=float) * [1, 100]
        assert sorted(map(tuple, drawn.round(9))) == sorted(map(tuple, expected.round(9)))
    assert any(text.get_text() == "natural" for text in figures["robustness"].axes[0].texts)


def test_methods_differ_without_color(result):
    """By marker and filling; further variants of one objective by another marker."""
    shown = plots.method_styles(result.runs)
    assert len({(style.marker, style.filled) for style in shown.values()}) == len(shown) == 8
    variants = pandas.DataFrame({"method": [f"pgd({n})" for n in range(4)], "objective": "pgd", "stabilized": False})
    assert len({style.marker for style in plots.method_styles(variants).values()}) == 4
    assert len({style.color for style in plots.method_styles(variants).values()}) == 4
    both = pandas.concat([variants, pandas.DataFrame({"method": ["mart"], "objective": "mart", "stabilized": False})])
    styles = plots.method_styles(both)
    assert styles["mart"].color not in {styles[name].color for name in variants["method"]}
    assert plots.method_styles(variants)["pgd(0)"] == plots.method_styles(variants.iloc[:1])["pgd(0)"]


@pytest.mark.slow
def test_pictures_are_opaque_and_repeat(result, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    names = plots.write_plots(result, tmp_path / "one")
    plots.write_plots(result, tmp_path / "two")
    assert not caplog.records  # nothing about embedded fonts
    for name in names:
        path = tmp_path / "one" / name
        assert path.read_bytes() == (tmp_path / "two" / name).read_bytes(), name
        if path.suffix == ".png":
            picture = imread(path)
            assert picture.shape[1] == 792  # 3.3 inches of 240 dots
            assert (picture[..., 3] == 1).all()
            ground = DARK if "dark" in name else PAPER
            assert picture[0, 0, 0] == pytest.approx(int(ground["background"][1:3], 16) / 255, abs=0.01)
            assert path.stat().st_size < 200_000
        else:
            assert b"/Type3" not in path.read_bytes()  # text stays text
