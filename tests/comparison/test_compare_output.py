"""What a comparison shows and writes: the command, tables that others can read, figures that can be read at all."""

from __future__ import annotations

import re
import resource
import shutil
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
from nsr.comparison.looks import looks
from nsr.comparison.tables import Cell, Sheet, decimals, sheets, spread
from nsr.comparison.writing import latex, latex_table, markdown, markdown_table
from nsr.plotting import DARK, PAPER
from tests.made_runs import make_evaluation, make_run

ROOT = Path(__file__).parent.parent.parent
OBJECTIVES = ("natural", "fast", "pgd", "trades")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """Four objectives without and with SNS, two seeds; one run failed, one still runs, one was evaluated further."""
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
    main([str(sweep), "--output", "out", "--resamples", "200", "--label", "pgd + sns=ours"])
    text = capsys.readouterr().out
    assert "…" not in text  # nothing is cut off where it is piped
    for label in ("natural", "fast", "ours", "trades + sns"):
        assert f"│ {label} " in text
    assert "pgd + sns" not in text
    assert re.search(r"│ natural \+ sns +│ 1 of 2 │", text)
    assert re.search(rf"{sweep}/3 +│ natural \+ sns │ 1 +│ failed +│ the loss is not finite \(epoch 1 of 3\)", text)
    assert re.search(rf"{sweep}/7 +│ fast \+ sns +│ 1 +│ running │ epoch 1 of 3, last change", text)
    assert "difference to pgd at equal seeds" in text
    assert "runs that are not finished, or lack an evaluation or an attack: 14; this finishes them:" in text
    assert f"python evaluate.py checkpoint={sweep}/1/checkpoints/best.ckpt 'attacks=[clean,autoattack]'" in text
    assert f"python train.py resume={sweep}/3" in text
    assert "... 9 more: the column command of comparison.csv" in text
    written = {path.name for path in (tmp_path / "out").iterdir()}
    figures = {
        f"{name}{kind}" for name in ("accuracy", "robustness", "layers") for kind in (".png", ".pdf", "_dark.png")
    }
    assert written == {
        *("comparison.csv", "methods.csv", "differences.csv", "correlations.csv", "comparison.md", "comparison.tex"),
        *figures,
    }
    assert all(name in text for name in written)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to compare: give run directories or the folder of a sweep"),
        (["/nowhere"], "there is no '/nowhere'; give run directories, the folder of a sweep, or a pattern"),
        (["no/runs/*"], "there is no 'no/runs/*'"),
        (["EMPTY"], "holds no run; a run directory of train.py has a config.yaml"),
        (["SWEEP", "--ouput", "x"], "unrecognized arguments: --ouput x; `python -m nsr.compare --help` explains"),
        (["SWEEP", "--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["SWEEP", "--baseline", "pdg"], "baseline is 'pdg'; it must be one of natural, natural + sns, fast"),
        (["SWEEP", "--accuracy", "apgd"], "accuracy is 'apgd'; it must be one of clean, fgsm, pgd"),
        (["SWEEP", "--label", "pgd"], "--label is ['pgd']; it must be METHOD=TEXT"),
        (["SWEEP", "--resamples", "0"], "resamples is 0; it must be a whole number at least 100"),
        (["SWEEP", "--output", "/dev/null/x"], "/dev/null"),
    ],
)
def test_what_the_user_can_mend_is_one_line(sweep, tmp_path, capsys, arguments, message):
    places = {"SWEEP": str(sweep), "EMPTY": str(tmp_path)}
    with pytest.raises(SystemExit) as stopped:
        main([places.get(argument, argument) for argument in arguments])
    assert stopped.value.code == 1
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1
    assert message in text


def test_runs_of_other_threat_models_are_refused_unless_asked(tmp_path, capsys):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", "epsilon=0.1")
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert f"epsilon is 0.15 in {tmp_path / 'a'} and 0.1 in {tmp_path / 'b'}; " in capsys.readouterr().err
    main([str(tmp_path), "--allow-different"])
    text = capsys.readouterr().out
    assert "│ pgd + sns epsilon=0.15 " in text and "│ pgd + sns epsilon=0.1 " in text
    assert "note  these runs differ in data or threat model" in text
    assert "a rank correlation needs at least 3 methods; there are 2" in text


def test_runs_that_have_all_yet_to_finish(tmp_path, capsys):
    make_run(tmp_path / "run", status="running")
    main([str(tmp_path), "--output", str(tmp_path / "out")])
    assert "epoch 1 of 3" in capsys.readouterr().out
    assert len(pandas.read_csv(tmp_path / "out" / "comparison.csv")) == 1
    assert not list((tmp_path / "out").glob("*.png"))


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error(sweep, tmp_path):
    program = f"{sys.executable} -m nsr.compare {sweep} --resamples 100 | head -n 1"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


@pytest.mark.slow
def test_help_is_quick_and_nothing_loads_torch():
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    command = [sys.executable, "-m", "nsr.compare", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert "RUN_DIR" in done.stdout and "--allow-different" in done.stdout
    assert seconds < 1
    program = "import sys, nsr.comparison.plots, nsr.comparison.writing; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "False"


# ---------------------------------------------------------------- tables


def test_files_hold_what_the_frames_hold(result, tmp_path):
    from nsr.comparison.writing import write

    write(result, tmp_path)
    runs = pandas.read_csv(tmp_path / "comparison.csv")
    assert len(runs) == 16
    assert runs["status"].tolist() == result.runs["status"].tolist()
    for name in ("pgd_accuracy", "absolute/relu1", "relative"):
        numpy.testing.assert_allclose(runs[name], result.runs[name].astype(float), rtol=1e-15)
    means = pandas.read_csv(tmp_path / "methods.csv")
    numpy.testing.assert_allclose(means["pgd_accuracy"], result.methods["pgd_accuracy"], rtol=1e-15)
    assert pandas.read_csv(tmp_path / "correlations.csv")["among"].tolist() == result.correlations["among"].tolist()
    assert (tmp_path / "differences.csv").read_text().startswith("method,baseline,figure,difference,low,high,pairs\n")


def test_the_figures_of_a_table(result):
    table = sheets(result)[0]
    rows = {row[0].text: dict(zip(table.headings, row, strict=True)) for row in table.rows}
    # seeds 0 and 1: 0.5 and 0.52, standard deviation 0.02 / sqrt(2)
    assert rows["pgd"]["pgd"] == Cell("51.00 +- 1.41")
    assert rows["trades + sns"]["pgd"] == Cell("66.00 +- 1.41", best=True)
    assert [name for name, row in rows.items() if row["pgd"].best] == ["trades + sns"]
    assert rows["natural"]["AutoAttack"].text == "25.00 (of 1)"  # of two finished runs
    assert rows["pgd"]["AutoAttack"].text == "-"
    assert rows["natural + sns"]["pgd"].text == "35.00"
    assert rows["natural + sns"]["seeds"].text == "1 of 2"
    assert all(cell.best for cell in (row["clean"] for row in rows.values()))  # all equal


def test_digits_follow_the_smallest_figure():
    assert decimals([0.5, 12.0]) == 3
    assert decimals([0.5, 0.00123]) == 5
    assert decimals([0.0, float("nan")]) == 3
    assert decimals([1e-9]) == 6
    assert spread(0.5, float("nan"), 3) == "0.500"
    assert spread(float("nan"), float("nan"), 3) == "-"


def test_many_layers_are_rows(result):
    wide = {f"absolute/block{number}": 0.1 for number in range(9)}
    by_layer = next(
        sheet
        for sheet in sheets(compare(result.runs.assign(**wide), resamples=100))
        if sheet.title == "absolute sensitivity by layer"
    )
    assert by_layer.headings[:2] == ["layer", "natural"]
    assert [row[0].text for row in by_layer.rows] == ["relu1", "relu2", *(f"block{number}" for number in range(9))]


ODD = Sheet(
    "50 % of a_b & c", ["method", "50 %", "a_b"], [[Cell("[x] | {y}^2 ~ z\\w <1>"), Cell("-1.5", True), Cell("-")]]
)


def test_markdown_is_well_formed(result):
    lines = markdown(result).splitlines()
    tables = [len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")]
    assert len(tables) > 20
    blocks: list[list[int]] = [[]]
    for line in lines:
        if line.startswith("|"):
            blocks[-1].append(len(re.findall(r"(?<!\\)\|", line)))
        elif blocks[-1]:
            blocks.append([])
    assert all(len(set(block)) == 1 and len(block) > 2 for block in blocks if block)
    assert markdown_table(ODD)[2] == r"| [x] \| {y}^2 ~ z\w <1> | **-1.5** | - |"
    assert "**66.00 +- 1.41**" in markdown(result)


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


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(result, tmp_path):
    (tmp_path / "comparison.tex").write_text(latex(result) + latex_table(ODD, "tab:x"))
    document = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{comparison}\end{document}"
    (tmp_path / "paper.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 0


# ---------------------------------------------------------------- figures


@pytest.fixture(scope="module")
def figures(result) -> dict[str, Figure]:
    drawn = {name: plots.drawn(getattr(plots, name), result) for name in ("accuracy", "robustness", "layers")}
    assert all(figure is not None for figure in drawn.values())
    return drawn  # type: ignore[return-value]


def test_axes_are_labelled_with_units(figures):
    labels = {
        name: [text for axes in figure.axes for text in (axes.get_xlabel(), axes.get_ylabel()) if text]
        for name, figure in figures.items()
    }
    assert figures["accuracy"].get_supxlabel() == "accuracy on the test set (%): a point a seed, bars at means"
    units = ["absolute sensitivity\n(activation units)", "relative sensitivity\n(share of activation)"]
    assert sorted(labels["robustness"]) == sorted([*units, "accuracy under pgd (%)"])
    assert sorted(labels["layers"]) == sorted([*units, "layer, from the image to the logits"])


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


def test_methods_are_told_apart_without_colour(result):
    """By marker and filling; further variants of one objective by another marker."""
    shown = looks(result.runs)
    assert len({(look.marker, look.filled) for look in shown.values()}) == len(shown) == 8
    variants = pandas.DataFrame(
        {"method": [f"pgd(steps={steps})" for steps in range(4)], "objective": "pgd", "stabilized": False}
    )
    assert len({look.marker for look in looks(variants).values()}) == 4
    assert len({look.color for look in looks(variants).values()}) == 4
    both = pandas.concat([variants, pandas.DataFrame({"method": ["mart"], "objective": "mart", "stabilized": False})])
    assert looks(both)["mart"].color not in {looks(both)[name].color for name in variants["method"]}
    assert looks(variants)["pgd(steps=0)"] == looks(variants.iloc[:1])["pgd(steps=0)"]


def luminance(color: str) -> float:
    """Relative luminance of WCAG 2."""
    values = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("theme", [PAPER, DARK], ids=["paper", "dark"])
def test_colours_stand_out_from_the_ground(theme):
    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    assert contrast(theme["ink"], theme["background"]) > 12
    assert min(contrast(color, theme["background"]) for color in plots.METHOD_COLORS) > 2


@pytest.mark.slow
def test_pictures_are_opaque_and_repeat(result, tmp_path):
    names = plots.write_plots(result, tmp_path / "one")
    plots.write_plots(result, tmp_path / "two")
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
