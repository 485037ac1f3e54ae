"""Measurements of other images, norms, radii or epochs are never mixed, ranked or taken for attacks."""

from __future__ import annotations

import json
import math

import numpy
import pytest
import torch
from made_runs import make_evaluation, make_run

from nsr.comparison import captions, statistics, tables, writing
from nsr.comparison.frames import read_runs
from nsr.comparison.reading import read_run
from nsr.comparison.settings import ball_of
from nsr.evaluation.report import metrics_table, write_evaluation
from nsr.metrics.sensitivity import LayerSensitivity
from nsr.plots.contrasts import nearest_shown
from nsr.report import comparison as several
from nsr.report.files import read_files
from nsr.report.sections import headline
from nsr.run.files import whole_rows


def test_evaluations_from_before_an_extension_do_not_count(tmp_path):
    run = make_run(tmp_path / "run", epochs=4, best=3)
    metrics = json.loads((run / "metrics.json").read_text())
    make_evaluation(run, "2030", {"clean": 0.9, "pgd": 0.4}, checkpoint_epoch=2)
    (run / "metrics.json").rename(run / "metrics_epoch3.json")
    found = read_run(run)
    assert (found.status, dict(found.metrics).get("pgd_accuracy")) != ("finished", 0.4)
    (run / "timing.json").unlink()  # as train.py does where it extends
    assert read_run(run).status == "unfinished"
    (run / "metrics.json").write_text(json.dumps(metrics))
    assert read_run(run).metrics["pgd_accuracy"] == 0.5


def test_a_run_that_a_check_stopped_says_so_also_after_an_evaluation(tmp_path):
    run = make_run(tmp_path / "run", status="failed", reason="stopped by a check", trained=True)
    make_evaluation(run, "2030", {"clean": 0.9, "pgd": 0.4})
    found = read_run(run)
    assert found.status == "finished" and "stopped by a check" in found.detail


@pytest.mark.parametrize(("limit", "expected"), [(1, 0.9), (0.5, 0.9), (1.0, 0.6), (None, 0.6)])
def test_accuracies_on_the_first_batches_stand_alone(tmp_path, limit, expected):
    run = make_run(tmp_path / "run")
    make_evaluation(run, "2030", {"clean": 0.8, "square": 0.6})
    make_evaluation(run, "2031", {"clean": 0.95, "pgd": 0.9}, trainer={"limit_test_batches": limit})
    found = read_run(run).metrics
    assert min(value for name, value in found.items() if name.endswith("_accuracy") and "valid" not in name) <= expected
    assert ("square_accuracy" in found) == (expected == 0.6)


def test_pictures_are_no_part_of_a_method(tmp_path):
    for seed, given in enumerate(("true", "false")):
        make_run(tmp_path / str(seed), f"pictures={given}", seed=seed)
    assert read_runs(tmp_path)["method"].nunique() == 1


def test_the_worst_case_is_of_what_was_measured(tmp_path):
    run = make_run(tmp_path / "run")
    folder = make_evaluation(run, "2030", {"clean": 0.9, "pgd": 0.4})
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(
        text.replace("test_attacks:\n", "test_attacks:\n  fgsm: null\n  curve: {a: 1}\n")
    )
    assert read_run(run).measured["worst_case_of"] == ["clean", "pgd"]


def test_an_attack_at_another_radius_is_in_no_worst_case_and_overstates_nothing(tmp_path):
    run = make_run(tmp_path / "run", "test_attacks=[clean,fgsm,pgd]", "test_attacks.fgsm.epsilon=0.3")
    make_evaluation(run, "2030", {"clean": 0.9, "fgsm": 0.1, "pgd": 0.4})
    assert read_run(run).measured["worst_case_of"] == ["clean", "pgd"]
    files = read_files(run)
    text = headline.summary(files, headline.rows_of(files))
    assert "PGD-40 on the test images: 40.0 %." in text


def test_weak_rows_are_no_attacks_in_any_norm(tmp_path):
    norms = {"pgd_linf": 0.5, "pgd_l2": 0.6, "autoattack_linf": 0.48, "autoattack_l2": 0.43, "uniform_l2": 0.3}
    run = make_run(tmp_path / "a")
    make_evaluation(run, "2030", {"clean": 0.9, **norms}, threat_models={"linf": 0.15, "l2": 1})
    files = read_files(run)
    text = headline.summary(files, headline.rows_of(files))
    assert "AutoAttack was not measured" not in text and "uniform" not in text
    assert "AutoAttack, L2" in text and "43.0 %" in text
    frame = read_runs(tmp_path)
    assert statistics.strongest_attack(frame) == "autoattack_l2_accuracy"
    assert "autoattack_accuracy" not in tables.headings(statistics.compare(frame))


def test_a_distance_has_the_norm_and_radius_of_its_attack():
    settings = {"norm": "linf", "epsilon": 0.1, "test_attacks": {"ddn": {"norm": "l2", "epsilon": "1/2"}, "fmn": None}}
    assert ball_of("ddn", settings) == ("l2", 0.5)
    assert ball_of("fmn", settings) == ("linf", 0.1)
    assert ball_of("fmn_l1", {**settings, "threat_models": {"linf": 0.1, "l1": 12}}) == ("l1", 12)


def test_metrics_of_the_user_are_no_attacks(tmp_path):
    run = make_run(tmp_path / "run")
    folder = make_evaluation(run, "2030", {"clean": 0.9, "pgd": 0.4})
    metrics = json.loads((folder / "evaluation.json").read_text()) | {"test/pgd_balanced_accuracy": 0.2}
    (folder / "evaluation.json").write_text(json.dumps(metrics))
    assert "pgd_balanced" not in headline.rows_of(read_files(run))
    plain = {name.removeprefix("test/"): value for name, value in metrics.items()}
    table = metrics_table(plain, ["clean", "pgd", "worst_case"])
    assert list(table.columns[0].cells) == ["pgd_balanced_accuracy"]


def test_an_evaluation_replaces_the_files_of_an_earlier_one(tmp_path):
    for accuracy, neurons in ((0.5, 3), (0.3, 2)):
        metrics = {f"test/clean_{part}": accuracy for part in ("accuracy", "low", "high")}
        write_evaluation(tmp_path, metrics, {"relu1": LayerSensitivity(*(torch.ones(neurons) for _ in range(3)))})
    assert [row["accuracy"] for row in whole_rows(tmp_path / "evaluation.csv")] == ["0.3"]
    assert len(list(whole_rows(tmp_path / "sensitivity.csv"))) == 2


@pytest.mark.parametrize("fractions", [(0.75, 0.25), (0.25, 0.75), (0.4, 0.6, 0.1)])
def test_of_two_fractions_equally_near_the_smaller_is_shown(fractions):
    assert nearest_shown(fractions) == min(fractions, key=lambda one: (abs(one - 0.5), one))


def test_agreement_of_ties_is_undefined_and_copies_of_a_seed_agree_with_nobody(tmp_path):
    assert math.isnan(several.concordance(numpy.zeros((3, 4))))
    for place in range(3):
        make_run(tmp_path / str(place), seed=0)
    assert several._concordances(read_runs(tmp_path)) == []


def test_unequal_settings_are_not_tested(tmp_path):
    for seed in range(8):
        make_run(tmp_path / f"a{seed}", "stabilizer=none", seed=seed, accuracies={"pgd": 0.5 + 0.001 * seed})
        make_run(tmp_path / f"b{seed}", "epsilon=0.05", seed=seed, accuracies={"pgd": 0.9 + 0.002 * seed})
    found = statistics.compare(read_runs(tmp_path, allow_different=True))
    assert found.differences["p"].isna().all() and len(found.differences)
    assert "nothing is tested where rows were measured under unequal settings" in found.notes
    assert not any(cell.best for row in tables.differences(found).rows for cell in row)
    assert "Highest mean" not in several._summary(found)
    assert captions.conditions_sentence(found.runs)


def test_titles_of_tables_hold_no_markup(tmp_path):
    sheet = tables.Table("difference from \x1b[31m<img src=x>", ["method", "pairs"], [[tables.Cell("a")] * 2])
    assert "\x1b" not in str(writing.screen_table(sheet).title)
