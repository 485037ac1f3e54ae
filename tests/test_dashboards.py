"""What reaches the dashboards, read back with their own tools and recomputed from the run's files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nsr.app.train import train
from nsr.loggers import finish, log_sensitivities
from nsr.metrics.layer_summary import LayerSummaries
from nsr.metrics.sensitivity import LayerSensitivity
from nsr.run.directory import BESIDE, flat
from tests.conftest import TINY, evaluated, job
from tests.offline_runs import assert_sensitivities, offline_history, offline_records, offline_run, rows

MEANS = {"sensitivity/absolute", "sensitivity/relative", "sensitivity/mean_activation"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """One tiny run, logged to Weights & Biases and to TensorBoard."""
    directory = tmp_path_factory.mktemp("dashboards") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        train(job("train", directory, *TINY[1:], "logger=[wandb,tensorboard]", "trainer.max_epochs=2"))
    return directory


@pytest.fixture(scope="module")
def history(run) -> list[dict]:
    return offline_history(offline_run(run))


@pytest.fixture(scope="module")
def results(run) -> dict:
    """metrics.json under the names that it has on a dashboard."""
    found = json.loads((run / "metrics.json").read_text())
    assert {"test/pgd_accuracy", "test_last/pgd_accuracy", "best_epoch", "last_epoch"} <= set(found)
    del found["schema"]
    return {name.replace("validation/", "validation_best/"): value for name, value in found.items()}


@pytest.fixture(scope="module")
def events(run) -> EventAccumulator:
    return read_events(run / "tensorboard")


def read_events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance=dict.fromkeys(("histograms", "images", "tensors"), 0))
    found.Reload()
    return found


def merged(run: Path, kind: str) -> dict:
    """The config or the summary that the offline run ends with."""
    return {key: value for one in offline_records(offline_run(run), kind) for key, value in one["update"].items()}


def test_no_logger_changes_the_run(run, trained):
    for name in ("metrics.json", "metrics.csv", "sensitivity.csv", "layers.csv"):
        assert (run / name).read_bytes() == (trained / name).read_bytes()


def test_wandb_has_means_histogram_and_table_of_each_epoch(run, history):
    assert assert_sensitivities(history, run) == {0, 1, 2}
    files = [row["sensitivity/layers.path"] for row in history if "sensitivity/layers.path" in row]
    tables = [json.loads((run / "wandb" / "latest-run" / "files" / name).read_text()) for name in files]
    logged = [dict(zip(table["columns"], row, strict=True)) for table in tables for row in table["data"]]
    as_text = [{key: "" if v is None else str(v).replace(",", "") for key, v in row.items()} for row in logged]
    assert as_text == rows(run / "layers.csv")


def test_wandb_has_the_metrics_of_each_epoch(run, history):
    written = {int(row["epoch"]): row for row in rows(run / "metrics.csv")}
    for name in ("validation/robust_accuracy", "train/loss"):
        logged = {int(row["epoch"]): row[name] for row in history if name in row}
        assert logged == pytest.approx({epoch: float(row[name]) for epoch, row in written.items() if row[name]})
    assert [row["lr-Adam"] for row in history if "lr-Adam" in row] == pytest.approx([0.005, 0.0025])  # cosine


def test_wandb_has_the_settings_flat_and_the_results_as_summary(run, results):
    settings, summary = merged(run, "config"), merged(run, "summary")
    written = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    expected = dict(flat({name: value for name, value in written.items() if name not in BESIDE}))
    assert expected["optimizer.lr"] == 0.005
    for name, value in expected.items():  # W&B's tool leaves out what is empty
        assert settings.get(name) == value or value in ({}, []), name
    assert {name: summary[name] for name in results} == pytest.approx(results)
    validated = [float(row["validation/robust_accuracy"]) for row in rows(run / "metrics.csv")]
    assert results["validation_best/robust_accuracy"] == validated[int(results["best_epoch"])]
    assert summary["validation/robust_accuracy"] == validated[-1]


def test_tensorboard_has_the_same(run, history, events):
    own = ("_", "trainer/")
    expected = {
        name
        for row in [*history, merged(run, "summary")]
        for name, value in row.items()
        if isinstance(value, int | float) and "." not in name and not name.startswith(own)
    }
    assert len(expected) > 30
    assert set(events.Tags()["scalars"]) == expected
    for name in MEANS:
        logged = [event.value for event in events.Scalars(name)]
        assert logged == pytest.approx([row[name] for row in history if name in row])
    counts = [row["sensitivity/histogram.values"] for row in history if "sensitivity/histogram.values" in row]
    buckets = [event.histogram_value.bucket for event in events.Histograms("sensitivity/histogram")]
    # TensorBoard leaves out some of the empty bins
    assert [list(filter(None, one)) for one in buckets] == [list(filter(None, one)) for one in counts]
    tables = events.Tensors("sensitivity/layers/text_summary")
    assert [table.tensor_proto.string_val[0].decode().count("| relu") for table in tables] == [4, 4, 4]


def test_tensorboard_has_the_settings_and_the_results(events, results):
    points = {name: [event.value for event in events.Scalars(name)] for name in results}
    assert points == {name: [pytest.approx(value)] for name, value in results.items()}
    (settings,) = events.Tensors("settings/text_summary")
    assert "| optimizer.lr | 0.005 |" in settings.tensor_proto.string_val[0].decode()
    assert b"optimizer.lr" in events.summary_metadata["_hparams_/session_start_info"].plugin_data.content


def test_the_heat_map_is_on_both(run, history, events):
    drawn = [row["sensitivity/heat_map.path"] for row in history if "sensitivity/heat_map.path" in row]
    last = run / "wandb" / "latest-run" / "files" / drawn[-1]
    assert last.read_bytes() == (run / "sensitivity.png").read_bytes()
    logged = events.Images("sensitivity/heat_map")[-1]
    with Image.open(run / "sensitivity.png") as picture:
        assert (logged.width, logged.height) == picture.size


def test_alarms_are_a_point_an_epoch_where_they_are_judged(history, events):
    expected = {"single_class": [0, 1, 2], "collapsed_network": [0, 1, 2], "catastrophic_overfitting": [1, 2]}
    expected["robust_overfitting"] = []  # too few epochs
    for name, epochs in expected.items():
        logged = {int(row["epoch"]): row[f"checks/{name}"] for row in history if f"checks/{name}" in row}
        assert logged == dict.fromkeys(epochs, 0)
        assert (f"checks/{name}" in events.Tags()["scalars"]) == bool(epochs)


@pytest.mark.slow
def test_an_evaluation_has_its_results_and_plots_on_both(run, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(
        "nsr.app.pictures.write_or_warn", lambda *_, **__: {"examples/examples": run / "sensitivity.png"}
    )
    few = (
        "test_attacks=[clean,fgsm,curve]",
        "evaluation.n_examples=20",
        "checks.enabled=false",
        "logger=[wandb,tensorboard]",
    )
    found = evaluated(tmp_path / "evaluation", f"checkpoint={run / 'checkpoints' / 'best.ckpt'}", *few)
    expected = {"examples/examples", "test/accuracy_by_epsilon", "test/class_accuracy", "test/confusion_matrix"}
    events, history = read_events(found / "tensorboard"), offline_history(offline_run(found))
    assert set(events.Tags()["images"]) == expected
    assert {key.removesuffix(".path") for row in history for key in row if key.endswith(".path")} == expected
    metrics = {
        name: value for name, value in json.loads((found / "evaluation.json").read_text()).items() if "test/" in name
    }
    summary = merged(found, "summary")
    for name, value in metrics.items():
        assert [each.value for each in events.Scalars(name)] == [pytest.approx(value)]
        assert "x0." in name or summary[name] == value  # leet splits names at their dots
    (started,) = offline_records(offline_run(found), "run")
    assert (started["job_type"], started["display_name"]) == ("evaluate", "run best")
    assert merged(found, "config")["evaluation.n_examples"] == 20


@pytest.mark.parametrize("per_layer", [False, True])
def test_a_deep_network_fills_a_dashboard_on_request_only(tmp_path, monkeypatch, per_layer):
    """Loggers of Lightning itself, not nsr's subclasses."""
    monkeypatch.setenv("WANDB_MODE", "offline")  # as WandbLogger does for good
    values = torch.tensor([1.0, 3.0], dtype=torch.float64)
    sensitivities = {
        f"relu{depth}": LayerSensitivity(depth * values, values / 4, torch.full_like(values, 4.0))
        for depth in range(1, 61)
    }
    plain = CSVLogger(tmp_path, name="csv", version="")
    loggers = [plain, TensorBoardLogger(tmp_path, "tensorboard", ""), WandbLogger(save_dir=tmp_path, offline=True)]
    summaries = LayerSummaries(list_top=1).add(0, sensitivities)
    log_sensitivities(loggers, sensitivities, summaries, step=7, epoch=0, per_layer=per_layer)
    plain.save()
    finish(loggers)
    (wandb_row,), (csv_row,) = offline_history(offline_run(tmp_path)), rows(tmp_path / "csv" / "metrics.csv")
    tags = read_events(tmp_path / "tensorboard").Tags()
    series = {f"sensitivity/{name}/relu{depth}" for name in ("absolute", "gini") for depth in (1, 60)}
    for names in (csv_row.keys(), wandb_row.keys(), set(tags["scalars"])):
        assert names >= MEANS
        assert names >= series if per_layer else not any("relu" in name for name in names)
    assert len(tags["histograms"]) == len(wandb_row.keys() & {f"{name}.values" for name in tags["histograms"]})
    assert len(tags["histograms"]) == (61 if per_layer else 1)
    assert float(csv_row["sensitivity/absolute"]) == np.mean([2.0 * depth for depth in range(1, 61)])
    assert float(csv_row["sensitivity/relative"]) == pytest.approx(np.mean([depth / 2 for depth in range(1, 61)]))
    assert {"sensitivity/layers/text_summary"} <= set(tags["tensors"])
    assert wandb_row["sensitivity/layers.nrows"] == 60
