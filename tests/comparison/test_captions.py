"""Captions, headings and daggers: a table of a comparison stands alone, and claims no lead that seeds do not show."""

from __future__ import annotations

import json
import shutil
import subprocess

import numpy
import pandas
import pytest

from nsr.compare import compare, main, read_runs
from nsr.comparison.captions import radius
from nsr.comparison.leaders import leads
from nsr.comparison.names import attack_heading, attack_names, method_names
from nsr.comparison.statistics import over_seeds
from nsr.comparison.tables import accuracies, by_layer, differences, sensitivities, sheets
from nsr.comparison.writing import latex, markdown
from nsr.run.files import write_rows
from tests.comparison.test_compare_statistics import made
from tests.made_runs import make_run

PGD = {"_target_": "nsr.attacks.measuring_pgd", "norm": "linf", "epsilon": "8/255", "steps": 40, "restarts": 1}
APGD_T = {"_target_": "nsr.attacks.AutoAttack", "version": "custom", "attacks": ["apgd-t"], "targets": 3}


def with_settings(runs: pandas.DataFrame, **changes) -> pandas.DataFrame:
    """Runs with the measurement that read_runs finds in their files."""
    attacks = {"pgd": {**PGD, "step_size": None}, "fgsm": {**PGD, "steps": 1, "step_size": 8 / 255}}
    measured = {"data": "cifar10", "norm": "linf", "epsilon": 8 / 255, "images": 1000}
    texts = {"test_attacks": json.dumps(attacks), "validation_attack": json.dumps({**PGD, "steps": 10})}
    return runs.assign(**(measured | texts | changes))


def test_the_caption_of_accuracies():
    table = accuracies(compare(with_settings(made(3, 10)), resamples=100))
    assert table.headings == ["method", "seeds", "clean", "FGSM", "PGD-40", "AutoAttack"]
    assert table.note == (
        "Test set: cifar10, 1,000 images. Threat model: L-infinity, epsilon 8/255, pixels in [0, 1]. "
        "FGSM: 1 step, step size 8/255, 1 restart; PGD-40: 40 steps, step size 2.5 epsilon / steps, 1 restart. "
        "n = 10 seeds a method, best checkpoint of each run. Bold: highest mean of a column, ties too. "
        "†: its lead over the runner-up is shown (sign-flip permutation test over n = 10 paired seeds, p <= 0.05 after "
        "Holm's correction over 3 comparisons)."
    )
    cells = {row[0].text: row[2:] for row in table.rows}
    assert [cell.best for cell in cells["pgd"]] == [True, True, True, False]
    assert [cell.text.endswith("†") for cell in cells["pgd"]] == [False, True, True, False]  # clean is a tie
    assert [cell.best for cell in cells["natural"]] == [True, False, False, False]
    assert not any("†" in cell.text for name in ("natural", "fast") for cell in cells[name])


def test_captions_of_the_other_tables():
    found = compare(with_settings(made(3, 10)), resamples=100)
    validated = "Validation images of cifar10; attack: PGD-10 (10 steps, 1 restart, L-infinity, epsilon 8/255). n = 10"
    for table in (sensitivities(found), by_layer(found, "absolute")):
        assert table.note.startswith(validated)
    note = differences(found).note
    assert note.startswith("Test set: cifar10, 1,000 images. Threat model: L-infinity, epsilon 8/255")
    assert "PGD-40: 40 steps" in note and "Holm's correction over 10 comparisons" in note
    text = markdown(found).replace("&lt;", "<")
    assert all(sheet.note in text for sheet in sheets(found))


def test_too_few_seeds_have_no_dagger_and_the_caption_says_so():
    table = accuracies(compare(with_settings(made(3, 5)), resamples=100))
    assert not any("†" in cell.text for row in table.rows for cell in row)
    assert (
        "No †: n too small to decide; with the sign-flip permutation test over n = 5 paired seeds the smallest "
        "attainable p after Holm's correction over 3 comparisons is 0.19." in table.note
    )
    runs = with_settings(made(2, 2))
    runs.loc[runs["method"] == "fast", "seed"] += 10
    assert "No †: no method has two seeds in common with the runner-up." in accuracies(compare(runs)).note
    alone = accuracies(compare(with_settings(made(1, 3))))
    assert alone.rows[0][2].best and "No †" in alone.note


def test_unequal_settings_are_stated_and_not_ranked():
    runs = with_settings(made(3, 10))
    pgd = runs["method"] == "pgd"
    table = accuracies(compare(runs.assign(epsilon=numpy.where(pgd, 4 / 255, 8 / 255)), resamples=100))
    assert "epsilon unequal between rows: epsilon 8/255 (natural, fast); epsilon 4/255 (pgd)" in table.note
    assert table.note.endswith("No mean is bold: the settings of the rows are unequal, so they cannot be ranked.")
    assert not any(cell.best or "†" in cell.text for row in table.rows for cell in row)
    for name, values, text in (
        ("images", (500, 1000), "images unequal between rows: 1,000 images (natural, fast); 500 images (pgd)"),
        ("norm", ("l2", "linf"), "norm unequal between rows: L-infinity (natural, fast); L2 (pgd)"),
    ):
        table = accuracies(compare(runs.assign(**{name: numpy.where(pgd, *values)}), resamples=100))
        assert text in table.note and not any(cell.best for row in table.rows for cell in row)
    more = json.dumps({"pgd": {**PGD, "steps": 100}})
    runs["worst_case_accuracy"], runs["worst_case_of"] = runs["pgd_accuracy"], "clean, pgd"
    table = accuracies(compare(runs.assign(test_attacks=runs["test_attacks"].where(~pgd, more)), resamples=100))
    assert table.headings[4] == "PGD attack"  # no number of steps holds for all; pgd is a method
    assert "PGD attack: settings unequal between rows: 40 steps, step size 2.5 epsilon / steps, 1 restart" in table.note
    assert "100 steps, 1 restart (pgd)" in table.note and "worst case: an image counts if" in table.note
    best = [{heading for row in table.rows for heading, cell in zip(table.headings, row, strict=True) if cell.best}]
    assert best == [{"clean", "FGSM"}] and "but where settings are unequal (2 columns)" in table.note


def test_a_lead_is_of_the_seeds_that_both_methods_have():
    """The best mean comes from a seed that the runner-up lacks; at equal seeds it is behind."""
    draw = numpy.random.default_rng(0)
    rows = [
        {"method": method, "seed": seed, "status": "finished", "pgd_accuracy": level + 0.001 * draw.random()}
        for method, level in (("a", 0.4), ("b", 0.5))
        for seed in range(8)
    ]
    rows.append({**rows[0], "seed": 99, "pgd_accuracy": 1.9})
    extra = {"objective": "x", "stabilized": False, "adversarial": True}
    runs = pandas.DataFrame(rows).assign(**extra)
    (lead,) = leads(runs, over_seeds(runs), ["pgd_accuracy"])[0].values()
    assert lead.best == ("a",) and lead.pairs == 8 and lead.holm_p == 2 / 2**8
    assert lead.difference == pytest.approx(-0.1, abs=0.001) and not lead.is_shown


@pytest.mark.slow
def test_tables_without_any_effect_have_a_dagger_in_at_most_five_percent():
    draw, shown = numpy.random.default_rng(0), 0
    names = ["clean_accuracy", "fgsm_accuracy", "pgd_accuracy"]
    extra = {"objective": "x", "stabilized": False, "adversarial": True, "status": "finished"}
    index = pandas.MultiIndex.from_product([["a", "b", "c", "d"], range(9)], names=["method", "seed"])
    for _ in range(150):
        runs = pandas.DataFrame(draw.standard_normal((36, 3)), index, names).reset_index().assign(**extra)
        shown += any(lead.is_shown for lead in leads(runs, over_seeds(runs), names)[0].values())
    assert shown <= 15  # 7.5 expected at most, standard deviation 2.7


def test_attacks_and_methods_never_share_a_name():
    runs = with_settings(made(3, 2)).assign(pgd100_accuracy=0.1, worst_case_accuracy=0.1, autoattack_accuracy=0.1)
    columns = [name for name in runs if name.endswith("_accuracy")]
    assert method_names(runs) == {"pgd": "PGD-AT"}
    stabilized = runs.assign(method=runs["method"] + " + sns(weight=2)")
    assert method_names(stabilized) == {"pgd + sns(weight=2)": "PGD-AT + sns(weight=2)"}
    attacks = json.dumps({"pgd": {**PGD, "steps": 100}, "pgd100": {**PGD, "steps": 100, "restarts": 5}})
    for labels in ({}, {"pgd": "PGD-100"}, {"pgd": "worst case", "fast": "autoattack"}, {"pgd": "FGSM"}):
        renamed = runs.assign(
            test_attacks=attacks, method=runs["method"].map(lambda name, to=labels: to.get(name, name))
        )
        names = attack_names(renamed, columns)
        assert len({name.casefold() for name in names.values()}) == len(columns)
        assert not {name.casefold() for name in names.values()} & {name.casefold() for name in renamed["method"]}
    assert {"PGD-100 (pgd)", "PGD-100 (pgd100)"} <= {*names.values()} and "FGSM attack" in names.values()


def test_headings_and_budgets_of_attacks():
    assert attack_heading("pgd", {**PGD, "norm": "l1"}) == "APGD-40"  # which takes the place of PGD in L1
    assert attack_heading("pgd100", {**PGD, "steps": 100}) == "PGD-100"
    assert attack_heading("mine_too", {}) == "mine too"
    runs = with_settings(
        made(2, 2), test_attacks=json.dumps({"pgd": APGD_T, "fgsm": {**APGD_T, "attacks": ["square"]}})
    )
    note = accuracies(compare(runs)).note
    assert "100 steps, 1 restart, 3 targets" in note and "FGSM: 3 targets, 5,000 queries" in note
    assert [radius(value) for value in (8 / 255, "8/255", 0.3, 0.5, 1, 12, None)] == [
        *("8/255", "8/255", "0.3", "0.5", "1", "12", "None")
    ]


def test_names_and_images_of_real_files(tmp_path, capsys):
    for seed in (0, 1):
        run = make_run(tmp_path / f"pgd{seed}", "stabilizer=none", seed=seed)
        write_rows(run / "images.csv", ["image", "pgd"], [[index, index % 2] for index in range(300)])
        make_run(tmp_path / f"sns{seed}", seed=seed)
    assert read_runs(tmp_path)["images"].dropna().tolist() == [300, 300]
    for arguments in (["--baseline", "pgd"], ["--baseline", "PGD-AT"], ["--label", "pgd=ours", "--baseline", "pgd"]):
        assert main([str(tmp_path), *arguments]) == 0
        text = capsys.readouterr().out
        name = "ours" if "--label" in arguments else "PGD-AT"
        assert f"difference from {name} at equal seeds" in text and f"│ {name} " in text
        assert "┃ PGD-40 ┃" in " ".join(text.split()) and "Test set: digits, 300 images." in text
        assert text.count("Validation images of digits") == 1  # not below each of four tables
    assert main([str(tmp_path), "--label", "PGD-AT + sns=ours"]) == 0
    assert "│ ours " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX engine is installed")
def test_latex_compiles(tmp_path):
    runs = with_settings(made(3, 10)).replace({"method": {"fast": "50 % of a_b & c^2 ~ {x} \\y <1> #3 $"}})
    (tmp_path / "tables.tex").write_text(latex(compare(runs, resamples=100)))
    document = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{tables}\end{document}"
    (tmp_path / "paper.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 10_000
