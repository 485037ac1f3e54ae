"""What is read of run directories: how runs stand, their figures, their methods, and which do not go together."""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from pathlib import Path
from statistics import fmean

import pytest

from nsr.app.train import evaluate, train
from nsr.compare import read_runs
from nsr.errors import InputError, RunStopped
from nsr.run.files import layer_means, whole_rows
from nsr.run.status import recorded_status
from tests.conftest import TINY, job
from tests.made_runs import make_evaluation, make_run

GONE = 2**30  # larger than any process number


def only(places, **settings):
    frame = read_runs(places, **settings)
    assert len(frame) == 1
    return frame.iloc[0]


# ---------------------------------------------------------------- a real one


def test_a_real_run_and_its_evaluation(trained, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    command = [f"checkpoint={run / 'checkpoints' / 'best.ckpt'}", "attacks=[clean,pgd]", "suite.pgd.steps=3"]
    evaluate(job("evaluate", run / "evaluations" / "2030-01-01", *command, "alarms.judge=false"))
    row = only(run)
    figures = json.loads((run / "evaluations" / "2030-01-01" / "evaluation.json").read_text())
    final = json.loads((run / "metrics.json").read_text())
    assert row["pgd_accuracy"] == figures["test/pgd_accuracy"]
    assert row["worst_case_accuracy"] == figures["test/worst_case_accuracy"]
    assert row["worst_case_of"] == "clean, pgd"
    assert row["fgsm_accuracy"] == final["test/fgsm_accuracy"]  # of the run's own end, for it was not measured again
    assert row["evaluation"] == "2030-01-01, end of training"
    assert (row["method"], row["status"], row["seed"]) == ("pgd + sns", "finished", 0)
    assert row["best_epoch"] == final["best_epoch"]
    with (run / "sensitivity.csv").open(newline="") as file:
        rows = [line for line in csv.DictReader(file) if line["epoch"] == str(final["best_epoch"])]
    relative = []
    for layer in ("relu1", "relu2", "relu3", "relu4"):
        absolute, active = (
            fmean(float(line[name]) for line in rows if line["layer"] == layer)
            for name in ("absolute", "mean_activation")
        )
        assert row[f"absolute/{layer}"] == pytest.approx(absolute, rel=1e-12)
        assert row[f"relative/{layer}"] == pytest.approx(absolute / active, rel=1e-12)
        relative.append(absolute / active)
    assert row["relative"] == pytest.approx(fmean(relative), rel=1e-12)
    # before training the weights are others, and so are the sensitivities
    assert row["absolute_before/relu1"] != row["absolute/relu1"] > 0


def test_a_job_says_how_it_stands(trained, tmp_path):
    marker = json.loads((trained / "status.json").read_text())
    assert marker["status"] == "finished"
    assert marker["program"] == "train.py"
    assert "model.width=4" in marker["overrides"]
    with pytest.raises(InputError):
        train(job("train", tmp_path / "refused", *TINY, "layers=[layer9]"))
    row = only(tmp_path)
    assert (row["status"], row["method"]) == ("failed", "?")
    assert row["detail"].startswith("no layer matches 'layer9'")


@pytest.mark.parametrize(
    ("error", "reason"),
    [(RunStopped("the loss is\nnot finite"), "the loss is"), (KeyboardInterrupt(), "KeyboardInterrupt")],
)
def test_a_job_that_stops_says_why(tmp_path, error, reason):
    def marker():
        return json.loads((tmp_path / "status.json").read_text())

    def stopped():
        with recorded_status(tmp_path, "train.py", []):
            assert marker()["status"] == "running"
            raise error

    with pytest.raises(type(error)):
        stopped()
    assert (marker()["status"], marker()["reason"]) == ("failed", reason)


# ---------------------------------------------------------------- which runs, and how they stand


def test_runs_are_found_once_in_sweeps_and_patterns(tmp_path):
    for number in (0, 2, 10):
        make_run(tmp_path / "sweep" / "2030" / str(number), seed=number)
    make_evaluation(tmp_path / "sweep" / "2030" / "2", "2030-01-01", {"clean": 0.9, "pgd": 0.4})
    (tmp_path / "sweep" / "2030" / "multirun.yaml").write_text("hydra: {}\n")
    (tmp_path / "link").symlink_to(tmp_path / "sweep")
    (tmp_path / "sweep" / "round").symlink_to(tmp_path / "sweep")  # of itself: no end
    frame = read_runs(tmp_path / "sweep", tmp_path / "link", str(tmp_path / "s*" / "*" / "2"))
    assert frame["seed"].tolist() == [0, 2, 10]
    assert frame["run"].tolist() == [str(tmp_path / "sweep" / "2030" / name) for name in ("0", "2", "10")]


def test_how_runs_stand(tmp_path):
    make_run(tmp_path / "a" / "finished")
    make_run(tmp_path / "a" / "failed", status="failed", reason="the loss is not finite")
    make_run(tmp_path / "a" / "running", status="running")
    make_run(tmp_path / "a" / "killed", status="running", process=GONE)
    make_run(tmp_path / "a" / "old", status="")
    make_run(tmp_path / "a" / "untested", status="failed", reason="out of memory", trained=True)
    make_run(tmp_path / "a" / "testing", status="running", trained=True)
    make_run(tmp_path / "a" / "tested later", status="running", process=GONE, trained=True)
    make_evaluation(tmp_path / "a" / "tested later", "2030", {"clean": 0.9, "pgd": 0.4})
    frame = read_runs(tmp_path).set_index(read_runs(tmp_path)["run"].map(lambda name: Path(name).name))
    statuses = {
        "finished": ("finished", ""),
        "failed": ("failed", "the loss is not finite (epoch 1 of 3)"),
        "killed": ("failed", "its process ended without a word, killed? (epoch 1 of 3)"),
        "untested": ("no evaluation", "out of memory"),
        "tested later": ("finished", ""),
    }
    for name, expected in statuses.items():
        assert tuple(frame.loc[name, ["status", "detail"]]) == expected
    assert frame.loc["running", "status"] == "running"
    assert frame.loc["running", "detail"].startswith("epoch 1 of 3, last change ")
    assert frame.loc["testing", "detail"].startswith("measuring the test set")
    assert frame.loc["old", "status"] == "unfinished"
    best = tmp_path / "a" / "untested" / "checkpoints" / "best.ckpt"
    assert frame.loc["untested", "command"] == f"python evaluate.py checkpoint={best}"
    # without metrics.json the best epoch is found as checkpoints are chosen
    assert frame.loc["tested later", "best_epoch"] == 2
    # what has not finished shows no sensitivity, for that of its best epoch is not known
    assert frame["absolute"].notna().sum() == 2
    assert frame.loc["running", "validation_robust_accuracy"] == 0.01


@pytest.mark.parametrize("text", ["objective: pgd\n", "- a\n", "a: [\n", "objective: {}\ndata: {}\n"])
def test_settings_of_another_program_are_no_method(tmp_path, text):
    run = make_run(tmp_path / "run")
    (run / "config.yaml").write_text(text)
    row = only(run)
    assert (row["status"], row["method"]) == ("unfinished", "?")
    assert row["detail"].startswith("no settings of a run in config.yaml")


def test_an_old_age_is_told(tmp_path):
    run = make_run(tmp_path / "run", status="")
    for path in run.iterdir():
        os.utime(path, times=(time.time() - 3 * 3600,) * 2)
    assert only(run)["detail"] == "epoch 1 of 3, last change 3 h ago"


# ---------------------------------------------------------------- while it is written


def test_only_whole_lines_are_rows(tmp_path):
    whole = make_run(tmp_path / "run", epochs=1) / "sensitivity.csv"
    text = whole.read_bytes()
    rows = list(whole_rows(whole))
    cut = tmp_path / "cut.csv"
    for end in [*range(40), *range(len(text) - 200, len(text))]:
        cut.write_bytes(text[:end])
        found = list(whole_rows(cut))
        assert found == rows[: max(0, text[:end].count(b"\n") - 1)]
    assert list(whole_rows(whole, starting="1,")) == [row for row in rows if row["epoch"] == "1"]


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "sensitivity.csv", "status.json", "metrics.json"])
def test_a_run_that_is_being_written(tmp_path, name):
    run = make_run(tmp_path / "run", status="finished" if name == "metrics.json" else "running")
    text = (run / name).read_bytes()
    for end in {0, 1, len(text) // 3, len(text) // 2, len(text) - 2, len(text) - 1}:
        (run / name).write_bytes(text[:end])
        row = only(run)
        assert row["status"] in ("running", "unfinished", "finished", "no evaluation")
        assert "absolute" not in row or name == "metrics.json"


def test_epochs_do_not_run_into_each_other(tmp_path):
    """Epoch 1 is no part of epoch 10."""
    run = make_run(tmp_path / "run", epochs=12, best=1)
    means = layer_means(run / "sensitivity.csv", 1)
    with (run / "sensitivity.csv").open(newline="") as file:
        rows = [
            float(row["absolute"]) for row in csv.DictReader(file) if (row["epoch"], row["layer"]) == ("1", "relu1")
        ]
    assert means["relu1"][0] == pytest.approx(fmean(rows))


# ---------------------------------------------------------------- evaluations


def test_each_attack_is_of_the_newest_evaluation_that_has_it(tmp_path):
    run = make_run(tmp_path / "run")
    make_evaluation(run, "2030-01-01", {"clean": 0.9, "pgd": 0.41, "square": 0.45})
    make_evaluation(run, "2030-01-02", {"clean": 0.9, "autoattack": 0.38})
    make_evaluation(run, "2030-01-03", {"clean": 0.1, "pgd": 0.01}, checkpoint="last.ckpt")
    row = only(run)
    measured = {"clean": 0.9, "fgsm": 0.6, "pgd": 0.41, "square": 0.45, "autoattack": 0.38, "worst_case": 0.38}
    assert {name: row[f"{name}_accuracy"] for name in measured} == measured
    assert row["worst_case_of"] == "autoattack, clean"
    assert row["command"] == ""
    # other images or another radius: figures of one kind alone
    make_evaluation(run, "2030-01-04", {"clean": 0.8, "pgd": 0.3}, limit=100)
    row = only(run)
    assert row["clean_accuracy"] == 0.8
    assert "square_accuracy" not in row
    assert row["evaluation"] == "2030-01-04"
    overrides = "'attacks=[clean,autoattack]' limit=100 limit_order=balanced"
    assert row["command"].endswith(f"best.ckpt {overrides}")


def test_what_measures_autoattack_is_told(tmp_path):
    run = make_run(tmp_path / "run")
    best = run / "checkpoints" / "best.ckpt"
    assert only(run)["command"] == f"python evaluate.py checkpoint={best} 'attacks=[clean,autoattack]'"
    other = make_run(tmp_path / "other", seed=1)
    make_evaluation(other, "2030", {"clean": 0.9, "autoattack": 0.4, "square": 0.5})
    frame = read_runs(tmp_path)
    assert frame["command"].tolist() == [
        f"python evaluate.py checkpoint={best} 'attacks=[clean,autoattack,square]'",
        "",
    ]


def test_a_killed_evaluation_goes_on_by_its_own_command(tmp_path):
    run = make_run(tmp_path / "run")
    make_evaluation(run, "2030", None)
    best = run / "checkpoints" / "best.ckpt"
    assert only(run)["command"] == f"python evaluate.py checkpoint={best} suite.pgd.steps=7"
    begun = run / "evaluations" / "2030" / "status.json"
    begun.write_text(begun.read_text().replace(str(GONE), str(os.getpid())))
    assert (only(run)["command"], only(run)["detail"]) == ("", "an evaluation is running")
    make_evaluation(run, "2031", {"clean": 0.9, "autoattack": 0.4})
    assert (only(run)["command"], only(run)["detail"]) == ("", "")


def test_alarms_are_told(tmp_path):
    run = make_run(tmp_path / "run")
    folder = make_evaluation(run, "2030", {"clean": 0.9, "autoattack": 0.4})
    alarms = [{"name": "masked gradients", "raised": True}, {"name": "other", "raised": False}]
    (folder / "alarms.json").write_text(json.dumps(alarms))
    assert only(run)["detail"] == "alarms raised: masked gradients"


# ---------------------------------------------------------------- methods


@pytest.mark.parametrize(
    ("commands", "labels"),
    [
        (
            [
                [f"objective={name}", "stabilizer=none"]
                for name in ("trades", "nfgsm", "fast", "pgd", "natural", "free")
            ],
            ["natural", "fast", "nfgsm", "free", "pgd", "trades"],
        ),
        (
            [["objective=mart"], ["objective=alp"], ["objective=eat", "attack.checkpoints=[a.ckpt]"]],
            ["alp + sns", "mart + sns", "eat + sns"],
        ),
        ([["stabilizer=sns"], ["stabilizer=none"]], ["pgd", "pgd + sns"]),
        (
            [["stabilizer.weight=2"], ["stabilizer.top=0.3"]],
            ["pgd + sns(weight=2, top=0.1)", "pgd + sns(weight=1, top=0.3)"],
        ),
        ([["objective.clean_share=0.5"], []], ["pgd(clean_share=0) + sns", "pgd(clean_share=0.5) + sns"]),
        (
            [["optimizer=sgd"], ["optimizer=adam"]],
            ["pgd + sns optimizer=Adam", "pgd + sns optimizer=SGD"],
        ),
        ([["model=resnet18"], []], ["pgd + sns model=ResNet18", "pgd + sns model=SmallCNN"]),
        ([["callbacks=[awp]"], []], ["pgd + sns", "pgd + sns + awp"]),
        ([["trainer.max_epochs=5"], []], ["pgd + sns max_epochs=3", "pgd + sns max_epochs=5"]),
        ([["attack.steps=5"], []], ["pgd(steps=10) + sns", "pgd(steps=5) + sns"]),
        ([["attack.steps=5"], ["attack=fgsm"]], ["fgsm + sns", "pgd + sns"]),
        # nothing of the machine or the dashboard makes another method
        ([["trainer.accelerator=cpu", "name=other", "data.workers=1", "logger=tensorboard"], []], ["pgd + sns"]),
    ],
)
def test_methods_and_their_labels(tmp_path, commands, labels):
    for number, command in enumerate(commands):
        for seed in (0, 1):
            make_run(tmp_path / str(number) / str(seed), *command, seed=seed)
    frame = read_runs(tmp_path)
    assert sorted(set(frame["method"])) == sorted(labels)
    if len(labels) > 1:
        assert (frame.groupby("method")["seed"].apply(list).map(sorted) == [[0, 1]] * len(labels)).all()
    if len(labels) == 6:
        assert list(dict.fromkeys(frame["method"])) == labels  # in the order of the project's tables
    assert (frame["adversarial"] == (frame["objective"] != "natural")).all()
    assert (frame["stabilized"] == frame["method"].str.contains("sns")).all()


def test_variants_are_in_the_order_of_their_numbers(tmp_path):
    for weight in (16, 2, 0.5):
        make_run(tmp_path / str(weight), f"stabilizer.weight={weight}")
    labels = [f"pgd + sns(weight={weight})" for weight in ("0.5", "2", "16")]
    assert read_runs(tmp_path)["method"].tolist() == labels


# ---------------------------------------------------------------- what does not go together


@pytest.mark.parametrize(
    ("overrides", "difference"),
    [
        (["epsilon=0.1"], "epsilon is 0.15 in A and 0.1 in B; compare"),
        (["norm=l2"], "norm is 'linf' in A and 'l2' in B (so do epsilon); compare"),
        (["data.split_seed=1"], "data.split_seed is 0 in A and 1 in B; compare"),
        (["data.validation_images=100"], "data.validation_images is 200 in A and 100 in B; compare"),
        (["suite.pgd.steps=20"], "suite.pgd.steps is 40 in A and 20 in B; compare"),
        (["validation_attack.steps=5"], "validation_attack.steps is 10 in A and 5 in B; compare"),
        (["data=fashion_mnist", "epsilon=0.15"], "data._target_ is 'nsr.data.Digits' in A and 'nsr.data.FashionMNIST'"),
    ],
)
def test_other_data_or_threat_models_are_refused(tmp_path, overrides, difference):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", *overrides)
    message = difference.replace(" A", f" {tmp_path / 'a'}").replace(" B", f" {tmp_path / 'b'}")
    with pytest.raises(InputError) as refused:
        read_runs(tmp_path)
    assert f"the runs differ in data or threat model: {message}" in str(refused.value)
    assert "\n" not in str(refused.value)
    frame = read_runs(tmp_path, allow_different=True)
    name = difference.split(" ")[0].removesuffix("._target_")
    assert frame["method"].nunique() == 2  # never averaged
    assert frame["conditions"].str.contains(f"{name}=").all()
    assert frame["method"].str.contains(f"{name}=").all()


def test_the_limit_and_the_radius_of_an_evaluation_count(tmp_path):
    for name, changes in (("a", {}), ("b", {"limit": 100})):
        make_evaluation(make_run(tmp_path / name, seed=ord(name)), "2030", {"clean": 0.9, "pgd": 0.4}, **changes)
    with pytest.raises(InputError, match=r"evaluation\.limit is None in .*a and '100 balanced' in .*b;"):
        read_runs(tmp_path)
    make_evaluation(make_run(tmp_path / "c"), "2030", {"clean": 0.9, "pgd": 0.4}, epsilon=0.05)
    with pytest.raises(InputError, match=r"evaluation\.epsilon is 0\.15 in .*a and 0\.05 in .*c;"):
        read_runs(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize(
    ("overrides", "epsilon"), [(["epsilon=3/20"], "3/20"), (["seed=3"], 0.15), (["data.root=/elsewhere"], 0.15)]
)
def test_what_is_the_same_after_all(tmp_path, overrides, epsilon):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", *overrides, seed=1)
    assert f"\nepsilon: {epsilon}\n" in (tmp_path / "b" / "config.yaml").read_text()
    assert read_runs(tmp_path)["method"].tolist() == ["pgd + sns"] * 2


def test_a_running_run_is_not_refused_for_what_it_has_not_measured(tmp_path):
    make_evaluation(make_run(tmp_path / "a"), "2030", {"clean": 0.9, "pgd": 0.4}, limit=100)
    make_run(tmp_path / "b", seed=1, status="running")
    assert read_runs(tmp_path)["method"].tolist() == ["pgd + sns"] * 2
