"""What reaches the dashboards, read back with their own tools and recomputed from the run's CSV."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from nsr.app.configuration import flat
from nsr.app.train import train
from nsr.loggers import log_sensitivities
from nsr.metrics.layer_summary import Telemetry
from nsr.metrics.sensitivity import LayerSensitivity
from tests.conftest import TINY, job
from tests.offline_runs import assert_histograms, offline_history, offline_records, offline_run, sensitivities


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """One tiny run for each dashboard."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        for logger in ("wandb", "tensorboard"):
            made[logger] = tmp_path_factory.mktemp("dashboards") / logger
            train(job("train", made[logger], *TINY[1:], f"logger={logger}", "trainer.max_epochs=2"))
    return made


@pytest.fixture(scope="module")
def history(runs) -> list[dict]:
    """The records of the offline W&B run, as wandb's own tool reads them."""
    return offline_history(offline_run(runs["wandb"]))


def test_wandb_histograms_equal_those_recomputed_from_the_csv(runs, history):
    seen = assert_histograms(history, runs["wandb"])
    assert {epoch for epoch, _ in seen} == {0, 1, 2}


def test_wandb_means_and_most_sensitive_neurons(runs, history):
    expected = sensitivities(runs["wandb"])
    for record in (record for record in history if "sensitivity/absolute/relu1" in record):
        for layer in ("relu1", "relu2", "relu3", "relu4"):
            values = expected[int(record["epoch"]), layer]
            assert record[f"sensitivity/absolute/{layer}"] == pytest.approx(np.mean(values), rel=1e-9)
            assert record[f"sensitivity/maximum/{layer}"] == max(values)
            distances = [abs(one - other) for one in values for other in values]
            assert record[f"sensitivity/gini/{layer}"] == pytest.approx(np.mean(distances) / 2 / np.mean(values))
            ids = sorted(range(len(values)), key=lambda neuron, row=values: (-row[neuron], neuron))[:10]
            assert record[f"sensitivity/most_sensitive/{layer}"] == ", ".join(map(str, ids))
    tables = list((runs["wandb"] / "wandb").rglob("*.table.json"))
    assert len(tables) == 3
    content = json.loads(tables[0].read_text())
    assert content["columns"] == ["epoch", "layer", "rank", "neuron", "absolute", "relative"]


def test_wandb_counts_epochs_as_the_records_do(runs, history):
    with (runs["wandb"] / "metrics.csv").open(newline="") as file:
        rows = {int(row["epoch"]): row for row in csv.DictReader(file)}
    logged = {
        int(record["epoch"]): record["validation/robust_accuracy"]
        for record in history
        if "validation/robust_accuracy" in record
    }
    assert logged == {epoch: float(row["validation/robust_accuracy"]) for epoch, row in rows.items()}
    for record in (record for record in history if "train/loss" in record):
        assert record["train/loss"] == pytest.approx(float(rows[int(record["epoch"])]["train/loss"]))


def test_the_heat_map_is_a_picture_in_the_dashboards(runs, history):
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    drawn = [record for record in history if "sensitivity/heat_map.path" in record]
    assert drawn
    pictures = list((runs["wandb"] / "wandb").rglob("media/images/sensitivity/heat_map_*.png"))
    assert len(pictures) == len(drawn)
    last = max(pictures, key=lambda path: path.stat().st_mtime)
    assert last.read_bytes() == (runs["wandb"] / "sensitivity.png").read_bytes()
    events = EventAccumulator(str(runs["tensorboard"] / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    with Image.open(runs["tensorboard"] / "sensitivity.png") as picture:
        logged = events.Images("sensitivity/heat_map")[-1]
        assert (logged.width, logged.height) == picture.size


def merged(runs, kind: str) -> dict:
    """The config or the summary that the offline run ends with."""
    found: dict = {}
    for record in offline_records(offline_run(runs["wandb"])):
        if record["type"] == kind:
            found |= record[kind]["update"]
    return found


def test_wandb_knows_the_settings_flat(runs):
    settings = merged(runs, "config")
    expected = dict(flat(OmegaConf.to_container(OmegaConf.load(runs["wandb"] / "config.yaml"))))
    assert expected["optimizer.lr"] == 0.005
    # W&B's tool joins nested names too, and leaves out what is empty
    assert {name: settings.get(name) for name in expected if expected[name] != {}} == {
        name: value for name, value in expected.items() if value != {}
    }
    (record,) = offline_run(runs["wandb"]).glob("run-*.wandb")
    assert b"optimizer.lr" in record.read_bytes()


def test_wandb_summary_has_best_and_last_figures(runs, history):
    summary = merged(runs, "summary")
    figures = json.loads((runs["wandb"] / "metrics.json").read_text())
    assert {"test/pgd_accuracy", "test_last/pgd_accuracy", "best_epoch", "last_epoch"} <= set(figures)
    for name, value in figures.items():
        assert summary[name.replace("validation/", "validation_best/")] == pytest.approx(value), name
    with (runs["wandb"] / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    best = rows[int(figures["best_epoch"])]
    for name in ("robust_accuracy", "clean_accuracy"):
        assert summary[f"validation_best/{name}"] == float(best[f"validation/{name}"])
        assert summary[f"validation/{name}"] == float(rows[-1][f"validation/{name}"])


def test_tensorboard_has_the_scalars_of_wandb(runs, history):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(runs["tensorboard"] / "tensorboard"))
    events.Reload()
    own = ("_", "trainer/")
    expected = {
        name
        for row in [*history, merged(runs, "summary")]
        for name, value in row.items()
        if isinstance(value, int | float) and "." not in name and not name.startswith(own)
    }
    assert len(expected) > 30
    assert set(events.Tags()["scalars"]) == expected


def test_tensorboard_has_settings_and_final_figures(runs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(runs["tensorboard"] / "tensorboard"))
    events.Reload()
    figures = json.loads((runs["tensorboard"] / "metrics.json").read_text())
    for name, value in figures.items():
        points = events.Scalars(name.replace("validation/", "validation_best/"))
        assert len(points) == 1
        assert points[0].value == pytest.approx(value)
    (settings,) = events.Tensors("settings/text_summary")
    assert "| optimizer.lr | 0.005 |" in settings.tensor_proto.string_val[0].decode()
    start = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"optimizer.lr" in start


def test_tensorboard_holds_the_same(runs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(runs["tensorboard"] / "tensorboard"), size_guidance={"histograms": 0, "tensors": 0})
    events.Reload()
    expected = sensitivities(runs["tensorboard"])
    for layer in ("relu1", "relu4"):
        logged = events.Histograms(f"sensitivity/histogram/{layer}")
        assert len(logged) == 3
        for epoch, event in enumerate(logged):
            values = expected[epoch, layer]
            counts, _ = np.histogram(values, bins=np.arange(65) / 64 * max(values))
            histogram = event.histogram_value
            # TensorBoard leaves out the empty bins at either end
            assert sum(histogram.bucket) == len(values)
            limits = dict(zip(histogram.bucket_limit, histogram.bucket, strict=True))
            edges = np.arange(65) / 64 * max(values)
            for edge, count in zip(edges[1:], counts, strict=True):
                assert limits.get(float(edge), 0) == count
    assert len(events.Scalars("sensitivity/absolute/relu1")) == 3
    assert len(events.Scalars("sensitivity/overlap_previous/relu1")) == 2
    assert [event.value for event in events.Scalars("epoch")][-1] == 2


def test_alarms_are_a_point_an_epoch_where_they_are_judged(runs, history):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    expected = {"one_class": [0, 1, 2], "constant": [0, 1, 2], "catastrophic_overfitting": [1, 2]}
    expected["robust_overfitting"] = []  # too few epochs
    events = EventAccumulator(str(runs["tensorboard"] / "tensorboard"))
    events.Reload()
    for name, epochs in expected.items():
        logged = {int(record["epoch"]): record[f"alarms/{name}"] for record in history if f"alarms/{name}" in record}
        assert logged == dict.fromkeys(epochs, 0)
        if epochs:
            assert [event.value for event in events.Scalars(f"alarms/{name}")] == [0.0] * len(epochs)
        else:
            assert f"alarms/{name}" not in events.Tags()["scalars"]


def test_a_logger_without_histograms_gets_the_figures():
    class Plain:
        logged: dict = {}

        def log_metrics(self, figures, step):
            self.logged[step] = figures

    values = torch.tensor([1.0, 3.0], dtype=torch.float64)
    layer = {"relu": LayerSensitivity(values, values / 4, torch.tensor([4.0, 4.0], dtype=torch.float64))}
    telemetry = Telemetry(top=1)
    log_sensitivities(Plain(), layer, telemetry.add(0, layer), step=7, epoch=0)
    assert Plain.logged[7] == {
        "sensitivity/absolute/relu": 2.0,
        "sensitivity/maximum/relu": 3.0,
        "sensitivity/gini/relu": 0.25,
        "sensitivity/relative/relu": 0.5,
        "sensitivity/mean_activation/relu": 4.0,
        "sensitivity/overlap_first/relu": 1.0,
    }
    log_sensitivities(Plain(), layer, telemetry.add(1, layer), step=8, epoch=1)
    assert Plain.logged[8]["sensitivity/overlap_previous/relu"] == 1.0


@pytest.mark.slow
def test_wandb_is_imported_only_where_used():
    program = "import nsr.app.train, sys; print('wandb' in sys.modules, 'tensorboard' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
