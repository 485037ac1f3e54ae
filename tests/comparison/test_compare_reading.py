"""Reading of run directories: statuses, metrics, methods, damaged runs, and runs that cannot be compared."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from statistics import fmean

import pandas
import pytest
import yaml

from nsr.app.train import train
from nsr.compare import compare, main, read_runs
from nsr.errors import InputError, RunStopped
from nsr.report.__main__ import main as report
from nsr.run.directory import recorded_status
from nsr.run.files import SCHEMA, layer_means, whole_rows, write_rows
from nsr.run.own import remember
from tests.conftest import TINY, evaluated, job
from tests.made_runs import make_evaluation, make_run

GONE = 2**30  # larger than any process number


def only(places, **settings):
    frame = read_runs(places, **settings)
    assert len(frame) == 1
    return frame.iloc[0]


def by_name(folder: Path):
    """The rows of a folder of runs by the names of their directories."""
    frame = read_runs(folder)
    return frame.set_index(frame["run"].map(lambda run: Path(run).name))


# ---------------------------------------------------------------- a real one
@pytest.mark.slow
def test_a_real_run_and_its_evaluation(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    command = [f"checkpoint={run / 'checkpoints' / 'best.ckpt'}", "test_attacks=[clean,pgd]", "checks.enabled=false"]
    evaluated(run / "evaluations" / "2030-01-01", *command, "test_attacks.pgd.steps=3")
    row = only(run)
    metrics = json.loads((run / "evaluations" / "2030-01-01" / "evaluation.json").read_text())
    final = json.loads((run / "metrics.json").read_text())
    assert row["pgd_accuracy"] == metrics["test/pgd_accuracy"]
    assert row["worst_case_accuracy"] == metrics["test/worst_case_accuracy"]
    assert row["worst_case_of"] == "clean, pgd"
    assert row["fgsm_accuracy"] == final["test/fgsm_accuracy"]  # from the end of training: not evaluated again
    assert row["evaluation"] == "2030-01-01, end of training"
    assert (row["method"], row["status"], row["seed"]) == ("pgd + sns", "finished", 0)
    assert row["best_epoch"] == final["best_epoch"]
    frame = pandas.read_csv(run / "sensitivity.csv")
    best = frame[frame["epoch"] == final["best_epoch"]].groupby("layer")[["absolute", "mean_activation"]].mean()
    relative = best["absolute"] / best["mean_activation"]
    for layer in best.index:
        assert row[f"absolute/{layer}"] == pytest.approx(best.loc[layer, "absolute"], rel=1e-12)
        assert row[f"relative/{layer}"] == pytest.approx(relative[layer], rel=1e-12)
    assert row["relative"] == pytest.approx(relative.mean(), rel=1e-12)
    assert row["absolute_before/relu1"] != row["absolute/relu1"] > 0


def test_a_refused_job_records_why(tmp_path):
    with pytest.raises(InputError):
        train(job("train", tmp_path / "refused", *TINY, "layers=[layer9]"))
    row = only(tmp_path)
    assert (row["status"], row["method"]) == ("failed", "?")
    assert row["detail"].startswith("no layer matches 'layer9'")


@pytest.mark.parametrize("error", [RunStopped("the loss is\nnot finite"), KeyboardInterrupt("the loss is")])
def test_a_stopped_job_records_why(tmp_path, error):
    with suppress(type(error)), recorded_status(tmp_path, "train.py", []):
        assert json.loads((tmp_path / "status.json").read_text())["status"] == "running"
        raise error
    marker = json.loads((tmp_path / "status.json").read_text())
    assert (marker["status"], marker["reason"]) == ("failed", "the loss is")


# ---------------------------------------------------------------- which runs, and their status
def test_runs_are_found_once_in_sweeps_and_patterns(tmp_path):
    for number in (0, 2, 10):
        make_run(tmp_path / "sweep" / "2030" / str(number), seed=number)
    make_evaluation(tmp_path / "sweep" / "2030" / "2", "2030-01-01", {"clean": 0.9, "pgd": 0.4})
    (tmp_path / "sweep" / "2030" / "multirun.yaml").write_text("hydra: {}\n")
    (tmp_path / "link").symlink_to(tmp_path / "sweep")
    (tmp_path / "sweep" / "round").symlink_to(tmp_path / "sweep")  # a cycle
    (tmp_path / "sweep" / "loop").symlink_to(tmp_path / "sweep" / "loop")
    frame = read_runs(tmp_path / "sweep", tmp_path / "link", str(tmp_path / "s*" / "*" / "2"))
    assert frame["seed"].tolist() == [0, 2, 10]
    assert frame["run"].tolist() == [str(tmp_path / "sweep" / "2030" / name) for name in ("0", "2", "10")]


def test_statuses(tmp_path):
    make_run(tmp_path / "finished")
    make_run(tmp_path / "failed", status="failed", reason="the loss is not finite")
    make_run(tmp_path / "running", status="running")
    make_run(tmp_path / "killed", status="running", process=GONE)
    make_run(tmp_path / "old", status="")
    make_run(tmp_path / "untested", status="failed", reason="out of memory", trained=True)
    make_run(tmp_path / "testing", status="running", trained=True)
    make_run(tmp_path / "tested later", status="running", process=GONE, trained=True)
    make_evaluation(tmp_path / "tested later", "2030", {"clean": 0.9, "pgd": 0.4})
    for path in (tmp_path / "old").iterdir():
        os.utime(path, times=(time.time() - 3 * 3600,) * 2)
    frame = by_name(tmp_path)
    expected = {
        "finished": ("finished", ""),
        "failed": ("failed", "the loss is not finite (epoch 1 of 3)"),
        "killed": ("failed", "its process ended without a message, killed? (epoch 1 of 3)"),
        "untested": ("no evaluation", "out of memory"),
        "tested later": ("finished", ""),
        "old": ("unfinished", "epoch 1 of 3, last change 3 h ago"),
    }
    assert {name: tuple(frame.loc[name, ["status", "detail"]]) for name in expected} == expected
    assert frame.loc["running", "status"] == "running"
    assert frame.loc["running", "detail"].startswith("epoch 1 of 3, last change ")
    assert frame.loc["testing", "detail"].startswith("measuring the test set")
    assert frame.loc["untested", "command"].endswith(f"checkpoint={tmp_path}/untested/checkpoints/best.ckpt")
    # without metrics.json the best epoch is found as checkpoints are chosen
    assert frame.loc["tested later", "best_epoch"] == 2
    # the best epoch of an unfinished run is not known, nor is its sensitivity
    assert frame["absolute"].notna().sum() == 2
    assert frame.loc["running", "validation_robust_accuracy"] == 0.01


# ---------------------------------------------------------------- odd runs
@pytest.mark.parametrize(
    ("file", "text", "status", "reason"),
    [
        ("config.yaml", None, "unreadable", "config.yaml is missing"),
        ("config.yaml", "", "unreadable", "config.yaml is damaged"),
        ("config.yaml", "a: [\n", "unreadable", "config.yaml is damaged"),
        ("config.yaml", "\xff\xfe", "unreadable", "config.yaml is damaged"),
        ("config.yaml", "- a\n", "unreadable", "config.yaml is damaged"),
        ("config.yaml", "objective: pgd\n", "unreadable", "config.yaml has no data, objective, trainer"),
        ("config.yaml", "data: {}\nobjective: {}\ntrainer: {}\n", "unreadable", "has no objective._target_"),
        ("config.yaml", f"schema: {SCHEMA + 1}\n", "unreadable", "config.yaml was written by a newer nsr (schema 2;"),
        ("metrics.json", "{", "unreadable", "metrics.json is damaged"),
        ("metrics.json", "[1]", "unreadable", "metrics.json is damaged"),
        ("metrics.json", f'{{"schema": {SCHEMA + 1}}}', "unreadable", "metrics.json was written by a newer nsr"),
        ("metrics.json", '{"test/a_b": "x", "test/pgd_accuracy": null}', "finished", ""),
        ("metrics.csv", None, "finished", ""),
        ("metrics.csv", "a,b\n1,2\n", "finished", "metrics.csv is damaged: KeyError 'epoch'"),
        ("metrics.csv", "epoch\nx\n", "finished", "metrics.csv is damaged: ValueError"),
        ("sensitivity.csv", None, "finished", ""),
        ("sensitivity.csv", "epoch,layer\n2,a\n", "finished", "sensitivity.csv is damaged: KeyError 'absolute'"),
        ("status.json", "[]", "finished", ""),
        ("timing.json", "[", "finished", ""),
    ],
)
def test_an_odd_run_is_listed_and_hides_no_other(tmp_path, capsys, file, text, status, reason):
    make_run(tmp_path / "good")
    path = make_run(tmp_path / "odd", seed=2) / file
    path.unlink() if text is None else path.write_bytes(text.encode("latin-1"))
    row = by_name(tmp_path).loc["odd"]
    assert row["status"] == status
    assert reason in row["detail"] and bool(reason) == bool(row["detail"])
    for folder in (tmp_path, tmp_path / "odd"):
        assert main([str(folder), "--resamples", "100"]) == 0
        assert reason in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes",
    [
        {"choices": [1]},
        {"overrides": 3, "seed": "x"},
        {"train_attack": {"_target_": "mypkg.Attack", "noise": "gaussian", "epsilon": "auto"}},
        {"test_attacks": [1]},
        {"evaluation": 3},
        {"trainer": {"max_epochs": None}, "callbacks": None, "stabilizer": None},
        {"objective": {"_target_": 3}},
    ],
)
def test_odd_settings_hide_no_other_run(tmp_path, changes):
    make_run(tmp_path / "good")
    make_run(tmp_path / "odd", seed=1, changes=changes)
    frame = read_runs(tmp_path, allow_different=True)
    assert frame["status"].tolist().count("finished") >= 1
    assert len(frame) == len(compare(frame, resamples=100).runs) == 2


@pytest.mark.parametrize("value", [math.nan, 1.2, -0.1, True, "0.9", 10**400])
def test_an_accuracy_that_is_none_is_not_shown(tmp_path, value):
    directory = make_run(tmp_path / "runs" / "odd")
    content = json.loads((directory / "metrics.json").read_text())
    (directory / "metrics.json").write_text(json.dumps({**content, "test/clean_accuracy": value}))
    make_run(tmp_path / "runs" / "plain")
    rows = by_name(tmp_path / "runs")
    assert rows["status"].to_dict() == {"odd": "unreadable", "plain": "finished"}
    assert "test/clean_accuracy is" in rows["detail"]["odd"] and pandas.isna(rows["clean_accuracy"]["odd"])


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "sensitivity.csv", "status.json"])
def test_a_run_that_is_being_written(tmp_path, name):
    run = make_run(tmp_path / "run", status="running")
    text = (run / name).read_bytes()
    for end in (0, 1, len(text) // 2, len(text) - 1):
        (run / name).write_bytes(text[:end])
        row = only(run)
        assert row["status"] in ("running", "unfinished") and "absolute" not in row


def test_only_whole_lines_are_rows(tmp_path):
    whole = make_run(tmp_path / "run", epochs=12, best=1) / "sensitivity.csv"
    text = whole.read_bytes()
    rows = list(whole_rows(whole))
    cut = tmp_path / "cut.csv"
    for end in [*range(40), *range(len(text) - 200, len(text))]:
        cut.write_bytes(text[:end])
        assert list(whole_rows(cut)) == rows[: max(0, text[:end].count(b"\n") - 1)]
    # epoch 1 is no part of epoch 10
    first = [row for row in rows if row["epoch"] == "1"]
    assert list(whole_rows(whole, starting="1,")) == first
    expected = fmean(float(row["absolute"]) for row in first if row["layer"] == "relu1")
    assert layer_means(whole, 1)["relu1"][0] == pytest.approx(expected)


def test_a_table_that_is_cut_short_gives_no_other_numbers(tmp_path):
    """Of a copied run whose sensitivity.csv or images.csv ends early, what is shown is that of the whole file."""
    run = make_run(tmp_path / "run", best=3)
    write_rows(run / "images.csv", ["image", "clean", "pgd"], [[n, int(n >= 10), int(n >= 50)] for n in range(100)])
    whole = only(run)
    assert whole["images"] == 100 and whole["detail"] == ""
    columns = [name for name in whole.index if name.startswith(("absolute", "relative", "mean_activation"))]
    for name, own in (("sensitivity.csv", columns), ("images.csv", ["images"])):
        text = (run / name).read_text()
        ends = [place + 1 for place, character in enumerate(text) if character == "\n"][:-1]
        for end in ends[-12:]:
            (run / name).write_text(text[:end])
            cut = only(run)
            assert name in cut["detail"] and cut["status"] == "finished"
            assert all(pandas.isna(cut.get(each)) for each in own)
            assert cut["pgd_accuracy"] == whole["pgd_accuracy"]
        (run / name).write_text(text)


def test_validated_accuracies_are_of_the_best_epoch_or_missing(tmp_path):
    run = make_run(tmp_path / "run", best=3)
    assert only(run)["validation_robust_accuracy"] == 0.7
    lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
    (run / "metrics.csv").write_text("".join(lines[:-1]))
    assert pandas.isna(only(run).get("validation_robust_accuracy"))


def test_values_that_are_not_a_number_stay_so(tmp_path):
    run = make_run(tmp_path / "run")
    text = (run / "sensitivity.csv").read_text().splitlines()
    odd = [",".join([*row.split(",")[:3], *["nan"] * 3]) if row.startswith("2,relu1,0") else row for row in text]
    (run / "sensitivity.csv").write_text("\n".join([*odd, ""]))
    row = only(run)
    assert math.isnan(row["relative/relu1"]) and math.isnan(row["relative"]) and row["relative/relu2"] > 0


def test_runs_inside_the_folder_of_a_run_are_listed(tmp_path, monkeypatch):
    outer = make_run(tmp_path / "outer", seed=0)
    make_run(outer / "again" / "inner", seed=1)
    make_evaluation(outer, "2030-01-01", {"clean": 0.9, "pgd": 0.5})
    of_wandb = outer / "wandb" / "run-1" / "files"
    of_wandb.mkdir(parents=True)
    (of_wandb / "config.yaml").write_text("seed: {value: 2}")
    assert read_runs(tmp_path)["seed"].tolist() == [0, 1]
    monkeypatch.chdir(tmp_path)
    written = []
    monkeypatch.setattr("nsr.report.page.write_report", lambda run, output: written.append(run) or run)
    assert report([str(outer)]) == 0
    assert written == [outer], "the report of a run is of this run alone"


@pytest.mark.parametrize("place", ["", " "])
def test_an_empty_path_is_not_the_working_directory(tmp_path, monkeypatch, place):
    make_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        read_runs(place)


def test_a_path_that_no_table_can_hold_is_refused(tmp_path):
    make_run(tmp_path / os.fsdecode(b"run\xff"))
    with pytest.raises(InputError, match="rename"):
        read_runs(tmp_path)


# ---------------------------------------------------------------- evaluations
@pytest.mark.parametrize("content", [None, "", "[1"])
def test_an_evaluation_without_settings_is_named(tmp_path, content):
    run = make_run(tmp_path / "run")
    make_evaluation(run, "2026-01-01", {"clean": 0.8, "pgd": 0.1})
    path = run / "evaluations" / "2026-01-01" / "config.yaml"
    path.unlink() if content is None else path.write_text(content)
    row = only(run)
    assert row["pgd_accuracy"] == 0.5 and "2026-01-01" in row["detail"]


def test_damaged_checks_are_named(tmp_path):
    run = make_run(tmp_path / "run")
    (make_evaluation(run, "2026-01-01", {"clean": 0.8, "pgd": 0.1}) / "checks.json").write_text("[{")
    assert "checks.json" in only(run)["detail"]


def test_each_attack_comes_from_the_newest_evaluation_that_has_it(tmp_path):
    run = make_run(tmp_path / "run")
    best = f"checkpoint={run}/checkpoints/best.ckpt"
    assert only(run)["command"].endswith(f"evaluate.py {best} 'test_attacks=[clean,autoattack]'")
    make_evaluation(run, "2030-01-01", {"clean": 0.9, "pgd": 0.41, "square": 0.45})
    folder = make_evaluation(run, "2030-01-02", {"clean": 0.9, "autoattack": 0.38, "mine": 0.5})
    make_evaluation(run, "2030-01-03", {"clean": 0.1, "pgd": 0.01}, checkpoint="last.ckpt")
    checks = [{"name": "weak_attack", "triggered": True}, {"name": "other", "triggered": False}, 3]
    (folder / "checks.json").write_text(json.dumps(checks))
    row = only(run)
    measured = {"clean": 0.9, "fgsm": 0.6, "pgd": 0.41, "square": 0.45, "autoattack": 0.38, "worst_case": 0.38}
    assert {name: row[f"{name}_accuracy"] for name in measured} == measured
    assert row["worst_case_of"] == "autoattack, clean, mine"
    assert (row["command"], row["detail"]) == ("", "checks triggered: weak_attack")
    # a run that lacks attacks: the command asks for those that need no settings of the user's
    make_run(tmp_path / "other", seed=1)
    assert by_name(tmp_path).loc["other", "command"].endswith("'test_attacks=[clean,square,autoattack]'")
    # other images or another radius: metrics of that kind alone
    make_evaluation(run, "2030-01-04", {"clean": 0.8, "pgd": 0.3}, n_examples=100, epsilon=0.05)
    row = only(run)
    assert row["clean_accuracy"] == 0.8
    assert "square_accuracy" not in row
    assert row["evaluation"] == "2030-01-04"
    overrides = "epsilon=0.05 evaluation.n_examples=100 evaluation.subset=balanced"
    assert row["command"].endswith(f"best.ckpt 'test_attacks=[clean,autoattack]' {overrides}")


def test_an_evaluation_of_an_earlier_best_checkpoint_is_left_out(tmp_path):
    """Of best.ckpt while the run still trained, or before it was extended: another network's accuracy."""
    run = make_run(tmp_path / "run", best=2)
    stale = {"clean": 0.9, "autoattack": 0.9}
    make_evaluation(run, "2030-01-01", stale, checkpoint_epoch=1)
    row = only(run)
    assert row["evaluation"] == "end of training" and "autoattack_accuracy" not in row
    assert "evaluation 2030-01-01 is of epoch 1, best.ckpt of epoch 2: left out" in row["detail"]
    assert row["status"] == "finished" and "autoattack" in row["command"]
    make_evaluation(run, "2030-01-02", {"clean": 0.5, "autoattack": 0.25}, checkpoint_epoch=2)
    assert only(run)["autoattack_accuracy"] == 0.25


@pytest.mark.slow
def test_a_real_evaluation_records_the_epoch_of_its_checkpoint(trained, tmp_path):
    command = [f"checkpoint={trained / 'checkpoints' / 'best.ckpt'}", "test_attacks=[clean]", "checks.enabled=false"]
    directory = evaluated(tmp_path / "evaluation", *command)
    best = json.loads((trained / "metrics.json").read_text())["best_epoch"]
    assert yaml.safe_load((directory / "config.yaml").read_text())["checkpoint_epoch"] == best


def test_a_killed_evaluation_is_resumed_by_its_own_command(tmp_path):
    run = make_run(tmp_path / "run")
    make_evaluation(run, "2030", None)
    assert only(run)["command"].endswith(f"checkpoint={run}/checkpoints/best.ckpt")  # whoever started it
    remember(["evaluate.py", json.loads((run / "evaluations" / "2030" / "status.json").read_text())["overrides"]])
    assert only(run)["command"].endswith(f"checkpoint={run}/checkpoints/best.ckpt test_attacks.pgd.steps=7")
    begun = run / "evaluations" / "2030" / "status.json"
    begun.write_text(begun.read_text().replace(str(GONE), str(os.getpid())))
    assert (only(run)["command"], only(run)["detail"]) == ("", "an evaluation is running")
    make_evaluation(run, "2031", {"clean": 0.9, "autoattack": 0.4})
    assert (only(run)["command"], only(run)["detail"]) == ("", "")


# ---------------------------------------------------------------- methods
MINE = {"_target_": "mypkg.MyObjective", "beta": 2}


OBJECTIVES = ("trades", "nfgsm", "fast", "pgd", "natural", "free")


LABELS = [  # commands apart by |
    (
        "|".join(f"objective={name} stabilizer=none" for name in OBJECTIVES),
        ["natural", "fast", "nfgsm", "free", "pgd", "trades"],
    ),
    (
        "objective=mart | objective=ensemble_adversarial train_attack.checkpoints=[a.ckpt]",
        ["mart + sns", "ensemble_adversarial + sns"],
    ),
    ("stabilizer=sns | stabilizer=none", ["pgd", "pgd + sns"]),
    (
        "stabilizer.weight=2 | stabilizer.top=0.3",
        [f"pgd + sns({own})" for own in ("weight=1.0, top=0.3", "weight=2, top=0.1")],
    ),
    ("objective.clean_weight=0.5 |", ["pgd(clean_weight=0) + sns", "pgd(clean_weight=0.5) + sns"]),
    ("optimizer=sgd | optimizer=adam", ["pgd + sns optimizer=adam", "pgd + sns optimizer=sgd"]),
    (
        "model=resnet18 | model.width=8 |",
        ["pgd + sns model=resnet18", *(f"pgd + sns model=small_cnn model.width={width}" for width in (8, 32))],
    ),
    ("callbacks=[awp] |", ["pgd + sns", "pgd + sns + awp"]),
    ("trainer.max_epochs=16 | trainer.max_epochs=5", ["pgd + sns max_epochs=5", "pgd + sns max_epochs=16"]),
    ("train_attack.steps=5 |", ["pgd(steps=5) + sns", "pgd(steps=10) + sns"]),
    ("train_attack=fgsm |", ["pgd(train_attack=fgsm) + sns", "pgd(train_attack=pgd) + sns"]),
    # the same settings by another choice
    ("objective=fast | objective=pgd train_attack=fast", ["fast + sns"]),
    # nothing of the machine or the loggers makes another method
    ("trainer.accelerator=cpu name=other data.num_workers=1 logger=tensorboard |", ["pgd + sns"]),
]
QUICK_LABELS = (0, 3, 11, 12)  # a choice, a setting, the same by another choice, what makes no difference


@pytest.mark.parametrize(
    ("commands", "labels"),
    [pytest.param(*row, marks=() if place in QUICK_LABELS else pytest.mark.slow) for place, row in enumerate(LABELS)],
)
def test_methods_and_their_labels(tmp_path, commands, labels):
    for number, command in enumerate(commands.split("|")):
        for seed in (0, 1):
            make_run(tmp_path / str(number) / str(seed), *command.split(), seed=seed)
    frame = read_runs(tmp_path)
    assert list(dict.fromkeys(frame["method"])) == labels  # in the order of tables
    if len(labels) > 1:
        assert all(sorted(seeds) == [0, 1] for _, seeds in frame.groupby("method")["seed"])
    assert (frame["adversarial"] == (frame["objective"] != "natural")).all()
    assert (frame["stabilized"] == frame["method"].str.contains("sns")).all()


def changed(choices: str, **settings):
    groups = zip(("objective", "stabilizer", "experiment"), choices.split(), strict=False)
    return {**settings, "choices": dict(groups)}


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ([{"objective": MINE}], ["MyObjective + sns"]),  # the shipped choice was replaced in a file
        ([{"objective": MINE, "choices": {"objective": "mine"}}], ["mine + SensitivityStabilizer"]),
        ([{"choices": {}}, {}], ["AdversarialTraining + SensitivityStabilizer"]),  # equal settings are one method
        ([{"stabilizer": {"_target_": "mypkg.Stabilizer"}}, {}], ["pgd + Stabilizer", "pgd + sns"]),
        (
            [changed(objective={**MINE, "beta": beta}, choices="mine sns") for beta in (1, 2)],
            ["mine(beta=1) + sns", "mine(beta=2) + sns"],
        ),
        (
            [changed(optimizer={"_target_": f"{name}.Adam"}, choices="pgd sns") for name in "ab"],
            ["pgd + sns optimizer=Adam", "pgd + sns optimizer=Adam #2"],  # never averaged
        ),
        (
            [changed(model={"width": width}, choices=f"pgd none {name}") for name, width in (("a", 4), ("b", 8))],
            ["pgd + SensitivityStabilizer experiment=a", "pgd + SensitivityStabilizer experiment=b"],
        ),
    ],
)
def test_labels_of_foreign_classes_and_files(tmp_path, changes, labels):
    for number, change in enumerate(changes):
        make_run(tmp_path / str(number), seed=number, changes=change)
    frame = read_runs(tmp_path)
    assert sorted(set(frame["method"])) == sorted(labels)
    assert frame["stabilized"].all() and frame["adversarial"].all()


# ---------------------------------------------------------------- runs that cannot be compared
@pytest.mark.parametrize(
    ("overrides", "difference"),
    [
        (["epsilon=0.1"], "epsilon is 0.15 in A and 0.1 in B; compare"),
        pytest.param(["norm=l2"], "norm is 'linf' in A and 'l2' in B; compare", marks=pytest.mark.slow),
        (["data.split_seed=1"], "data.split_seed is 0 in A and 1 in B; compare"),
        pytest.param(
            ["data.validation_images=100"],
            "data.validation_images is 200 in A and 100 in B; compare",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["test_attacks.pgd.steps=20"],
            "test_attacks.pgd.steps is 40 in A and 20 in B; compare",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["validation_attack.steps=5"],
            "validation_attack.steps is 10 in A and 5 in B; compare",
            marks=pytest.mark.slow,
        ),
        (["data=fashion_mnist", "epsilon=0.15"], "data is 'digits' in A and 'fashion_mnist' in B; compare"),
    ],
)
def test_other_data_or_threat_models_are_refused(tmp_path, overrides, difference):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", *overrides)
    message = difference.replace(" A", f" {tmp_path / 'a'}").replace(" B", f" {tmp_path / 'b'}")
    with pytest.raises(InputError) as refused:
        read_runs(tmp_path)
    assert f"the runs differ in data or threat model: {message}" in str(refused.value)
    frame = read_runs(tmp_path, allow_different=True)
    name = difference.split(" ")[0]
    assert frame["method"].nunique() == 2  # never averaged
    assert frame["conditions"].str.contains(f"{name}=").all()
    assert frame["method"].str.contains(f"{name}=").all()


def test_the_images_and_the_radius_of_an_evaluation_count(tmp_path):
    for name, count in (("a", None), ("b", 100)):
        make_evaluation(make_run(tmp_path / name, seed=ord(name)), "2030", {"clean": 0.9, "pgd": 0.4}, n_examples=count)
    with pytest.raises(InputError, match=r"evaluation\.n_examples is None in .*a and 100 in .*b;"):
        read_runs(tmp_path)
    make_evaluation(make_run(tmp_path / "c"), "2030", {"clean": 0.9, "pgd": 0.4}, epsilon=0.05)
    with pytest.raises(InputError, match=r"evaluation\.epsilon is 0\.15 in .*a and 0\.05 in .*c;"):
        read_runs(tmp_path / "a", tmp_path / "c")
    # a run without accuracies yet does not differ in them
    make_run(tmp_path / "d", seed=1, status="running")
    assert read_runs(tmp_path / "b", tmp_path / "d")["method"].tolist() == ["pgd + sns"] * 2


@pytest.mark.parametrize(
    ("overrides", "changes"),
    [(["epsilon=3/20"], {}), (["data.root=/elsewhere"], {}), ([], {"choices": {"data": "my"}})],
)
def test_runs_that_are_the_same_after_all(tmp_path, overrides, changes):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", *overrides, seed=1, changes=changes)
    assert read_runs(tmp_path)["method"].nunique() == 1


def test_the_place_of_the_users_own_images_counts(tmp_path):
    for name in "ab":
        data = yaml.safe_load((make_run(tmp_path / name / "x") / "config.yaml").read_text())["data"]
        make_run(tmp_path / name / "run", changes={"data": {**data, "_target_": "mypkg.load", "root": f"/{name}"}})
    with pytest.raises(InputError, match="data.root is '/a' in .* and '/b' in"):
        read_runs(tmp_path / "a" / "run", tmp_path / "b" / "run")
