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

from nsr.assembly import train
from nsr.dashboards import log_sensitivities
from nsr.metrics import LayerSensitivity
from nsr.telemetry import Telemetry
from tests.conftest import TINY, job


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


def sensitivities(run: Path) -> dict[tuple[int, str], list[float]]:
    """{(epoch, layer): absolute sensitivity by neuron}."""
    found: dict[tuple[int, str], list[float]] = {}
    with (run / "sensitivity.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            key = int(row["epoch"]), row["layer"]
            assert int(row["neuron"]) == len(found.setdefault(key, []))
            found[key].append(float(row["absolute"]))
    return found


@pytest.fixture(scope="module")
def history(runs) -> list[dict]:
    """The records of the offline W&B run, as wandb's own tool reads them."""
    (offline,) = (runs["wandb"] / "wandb").glob("offline-run-*")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(offline)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    records = [json.loads(line) for line in lines]
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def test_wandb_histograms_equal_those_recomputed_from_the_csv(runs, history):
    expected = sensitivities(runs["wandb"])
    seen = set()
    for record in history:
        for name in record:
            if name.startswith("sensitivity/histogram/") and name.endswith(".values"):
                layer = name.removeprefix("sensitivity/histogram/").removesuffix(".values")
                values = expected[int(record["epoch"]), layer]
                edges = np.arange(65) / 64 * max(values)
                counts, _ = np.histogram(values, bins=edges)
                assert record[name] == counts.tolist()
                assert record[f"sensitivity/histogram/{layer}.bins"] == edges.tolist()
                assert sum(record[name]) == len(values)
                seen.add((int(record["epoch"]), layer))
    assert seen == set(expected)
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


def test_wandb_knows_the_settings(runs):
    (offline,) = (runs["wandb"] / "wandb").glob("offline-run-*")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(offline)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert '"clean_share":0' in text


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


def test_wandb_is_offline_without_a_key(monkeypatch, tmp_path):
    from nsr.dashboards import wandb

    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    modes = []
    monkeypatch.setattr(wandb, "_begin", lambda *arguments: modes.append(arguments[-1]))
    wandb.wandb_logger(save_dir=str(tmp_path))
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    wandb.wandb_logger(save_dir=str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.wandb_logger(save_dir=str(tmp_path))
    wandb.wandb_logger(save_dir=str(tmp_path), mode="online")
    assert modes == ["offline", "online", "offline", "online"]


def test_wandb_falls_back_where_it_cannot_be_reached(monkeypatch, tmp_path, caplog):
    from nsr.dashboards import wandb

    asked = []

    def begin(save_dir, project, name, mode):
        asked.append(mode)
        if mode == "online":
            raise wandb.wandb.errors.CommError("no network")
        return "logger"

    monkeypatch.setattr(wandb, "_begin", begin)
    assert wandb.wandb_logger(save_dir=str(tmp_path), mode="online") == "logger"
    assert asked == ["online", "offline"]
    assert "recorded offline" in caplog.text


def test_wandb_is_imported_only_where_used():
    program = "import nsr.assembly, sys; print('wandb' in sys.modules, 'tensorboard' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
