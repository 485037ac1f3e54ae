"""Whole runs: the files they leave and the numbers in them."""

from __future__ import annotations

import gc
import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from nsr.app.train import train
from nsr.callbacks import RunRecords
from nsr.errors import RunStopped
from nsr.models import Classifier
from nsr.randomness import draw_seed
from nsr.run.files import write_text
from tests.conftest import REPEATED, TINY, assert_repeats, evaluated, in_a_process, job, made, read_json, rows, without

ROOT = Path(__file__).parent.parent
FILES = ("metrics.json", "metrics.csv", "sensitivity.csv")


def test_the_files_of_a_run(trained):
    names = {path.name for path in trained.iterdir()}
    assert {*FILES, "config.yaml", "timing.json", "checkpoints", "csv"} <= names
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    metrics = rows(trained / "metrics.csv")
    assert [row["epoch"] for row in metrics] == ["0", "1", "2"]
    assert metrics[0]["train/loss"] == ""
    terms = ("loss", "adversarial_cross_entropy", "stabilizer", "robust_accuracy")
    assert all(float(metrics[1][f"train/{name}"]) >= 0 for name in terms)
    parts = sum(float(metrics[1][f"train/{name}"]) for name in ("adversarial_cross_entropy", "stabilizer"))
    assert float(metrics[1]["train/loss"]) == pytest.approx(parts, rel=1e-6)
    timing = json.loads((trained / "timing.json").read_text())
    assert len(timing["epochs"]) == 2
    settings = OmegaConf.load(trained / "config.yaml")
    assert settings.train_attack.epsilon == 0.15
    assert "${" not in (trained / "config.yaml").read_text()


def test_the_final_metrics(trained):
    metrics = read_json(trained / "metrics.json")
    for attack in ("clean", "fgsm", "pgd"):
        for prefix in ("test", "test_last"):
            accuracy = metrics[f"{prefix}/{attack}_accuracy"]
            assert accuracy * 500 == pytest.approx(round(accuracy * 500), abs=1e-9)
    assert metrics["last_epoch"] == 2
    validated = rows(trained / "metrics.csv")[metrics["best_epoch"]]
    assert metrics["validation/robust_accuracy"] == float(validated["validation/robust_accuracy"])
    best = max(float(row["validation/robust_accuracy"]) for row in rows(trained / "metrics.csv")[1:])
    assert metrics["validation/robust_accuracy"] == best
    assert not any("second" in name or "time" in name for name in metrics)


def test_sensitivities_recomputed_without_nsr(trained):
    """The last epoch's rows from last.ckpt, the attack's images and plain loops over layers."""
    again = made("train", *TINY)
    data, module = again.data, again.module
    saved = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    net = module.net
    state = {name[4:]: value for name, value in saved["state_dict"].items() if name.startswith("net.")}
    net.load_state_dict(state)
    net.eval()
    data.setup("fit")
    images, labels = data.validation_set.images, data.validation_set.labels
    generator = torch.Generator().manual_seed(draw_seed(0, 1, 0))
    attack = module.validation_attack
    adversarial = attack(net, images, labels, generator=generator)

    written = [row for row in rows(trained / "sensitivity.csv") if row["epoch"] == "2"]
    assert [row["layer"] for row in written[:4]] == ["relu1"] * 4
    for layer in ("relu1", "relu2", "relu3", "relu4"):
        outputs = []
        hook = getattr(net.net, layer).register_forward_hook(lambda _m, _i, output, kept=outputs: kept.append(output))
        with torch.no_grad():
            net(images), net(adversarial)
        hook.remove()
        clean, moved = (output.double().unsqueeze(2).flatten(2) for output in outputs)
        absolute = (clean - moved).abs().mean((0, 2))
        activation = clean.abs().mean((0, 2))
        mine = [row for row in written if row["layer"] == layer]
        assert [int(row["neuron"]) for row in mine] == list(range(len(absolute)))
        for row, expected, active in zip(mine, absolute.tolist(), activation.tolist(), strict=True):
            assert float(row["absolute"]) == pytest.approx(expected, rel=1e-6)
            assert float(row["mean_activation"]) == pytest.approx(active, rel=1e-6)
            relative = expected / active if active else float("inf") if expected else 0
            assert float(row["relative"]) == pytest.approx(relative, rel=1e-6)


def test_the_same_command_gives_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        train(job("train", tmp_path / name, *TINY))
    for name in FILES:
        first, second = ((tmp_path / run / name).read_bytes() for run in ("first", "second"))
        assert first == second, name
    train(job("train", tmp_path / "other", *TINY, "seed=1"))
    assert (tmp_path / "other" / "metrics.csv").read_bytes() != (tmp_path / "first" / "metrics.csv").read_bytes()


def test_an_evaluation_repeats_the_runs_own(best, trained, tmp_path, capsys):
    run = evaluated(tmp_path / "evaluation", best, *REPEATED)
    assert_repeats(trained, run)
    assert [row["attack"] for row in rows(run / "evaluation.csv")] == ["clean", "fgsm", "pgd", "worst_case"]
    shown = capsys.readouterr().out
    relu4 = [row for row in rows(run / "sensitivity.csv") if row["layer"] == "relu4"]
    most = max(relu4, key=lambda row: float(row["absolute"]))
    assert f"{most['neuron']} (" in next(line for line in shown.splitlines() if "relu4" in line)


def test_third_party_weights(trained, tmp_path):
    saved = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    weights = {name.removeprefix("net.net."): value for name, value in saved.items() if name.startswith("net.net.")}
    torch.save(weights, tmp_path / "weights.pt")
    command = ["model=small_cnn", "model.width=4", f"model.weights={tmp_path / 'weights.pt'}", "data=digits"]
    command += ["model.normalization=data"]
    assert_repeats(trained, evaluated(tmp_path / "evaluation", *command, *REPEATED))


def test_validation_measures_with_its_own_passes_alone(tmp_path, monkeypatch):
    """Sensitivity, histograms and hooked layers add no pass: clean, adversarial, and the attack's."""
    passes = []
    forward = Classifier.forward

    def counting(self, images):
        passes.append(torch.is_grad_enabled())
        return forward(self, images)

    tiny = without("test_attacks.")
    natural = ("objective=natural", "stabilizer=none", "test_attacks=[clean]", "pictures=false")
    config = job("train", tmp_path / "run", *tiny, *natural)
    before_training = len(passes)
    monkeypatch.setattr(Classifier, "forward", counting)
    train(config)
    # four passes that find layers, one that finds the classes, one the objective's terms; folding: a trace and a trial;
    # one each for the gradients that the training and the validation attack need
    before = 6 + 2 + 2
    # 200 images are one batch: twice (epochs 0 and 1) 2 passes and 2 attack steps; 2 training steps; 2 batches of test
    assert len(passes) - before_training == before + 2 * (2 + 2) + 2 + 2


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(RunStopped, match=r"the loss is not finite at step \d+ \(epoch \d\)"):
        train(job("train", tmp_path / "run", *TINY, "optimizer=sgd", "optimizer.lr=1e30", "trainer.max_epochs=4"))
    assert len(rows(tmp_path / "run" / "metrics.csv")) >= 1
    kept = tmp_path / "run" / "checkpoints" / "last.ckpt"
    if kept.exists():
        state = torch.load(kept, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for name, value in state.items() if name.startswith("net."))


def test_a_file_that_cannot_be_written_leaves_no_part_of_it(tmp_path):
    write_text(tmp_path / "file", "before")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "file", 100_000 * "a" + "\udc80")  # which UTF-8 has not
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["trainer.precision=bf16-mixed", "channels_last=true", "model=resnet20"])
def test_settings_that_only_change_how_it_is_computed(tmp_path, setting):
    tiny = without("model.width") if "resnet" in setting else TINY
    assert 0 <= train(job("train", tmp_path / "run", *tiny, setting)) <= 1


def test_l2_and_fgsm_training(tmp_path):
    train(job("train", tmp_path / "run", *TINY, "norm=l2", "train_attack=fgsm"))
    attack = OmegaConf.load(tmp_path / "run" / "config.yaml").train_attack
    assert (attack.norm, attack.epsilon, attack.step_size) == ("l2", 0.75, 0.75)


@pytest.mark.slow
def test_as_a_user_runs_it(tmp_path):
    """One run and its evaluation as processes: exit codes, the screen, a row an epoch, no traceback, no warning."""
    run = tmp_path / "run"
    done = in_a_process("train.py", *TINY[1:], f"hydra.run.dir={run}", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("epoch ")] == ["0/1", "1/1"]
    for text in ("PGD-2, L-infinity 0.15", "best (epoch 1)", "relu4", "run directory", "try next"):
        assert text in done.stdout
    assert (run / "train.log").exists()
    assert len(list((run / "wandb").glob("offline-run-*"))) == 1
    following = next(line for line in done.stdout.splitlines() if line.startswith("try next")).split("python ")[1]
    done = in_a_process(*shlex.split(following), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "most sensitive neurons" in done.stdout
    assert list((run / "evaluations").glob("*/evaluation.json"))


@pytest.mark.slow
def test_a_broken_job_of_a_sweep_does_not_stop_the_others(tmp_path):
    rates = ["optimizer=sgd", "optimizer.lr=1e30,0.01", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    done = in_a_process("train.py", "-m", *TINY, *rates, folder=tmp_path)
    assert done.returncode != 0
    assert "the loss is not finite" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "sweep" / "1" / "metrics.json").exists()


@pytest.mark.slow
def test_metrics_are_float32_whatever_trained_the_network(tmp_path):
    """A run in bf16 reports what an evaluation of its checkpoint in float32 does."""
    run = tmp_path / "run"
    train(job("train", run, *TINY, "trainer.precision=bf16-mixed"))
    assert_repeats(run, evaluated(tmp_path / "again", f"checkpoint={run / 'checkpoints' / 'best.ckpt'}", *REPEATED))


def test_the_seconds_of_an_interrupted_epoch_are_of_all_of_it(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("time.perf_counter", lambda: clock.now)
    rate = SimpleNamespace(param_groups=[{"lr": 0.1}])
    strategy = SimpleNamespace(broadcast=lambda value: value)
    trainer = SimpleNamespace(optimizers=[rate], is_global_zero=False, strategy=strategy)

    def begun(state=None):
        records = RunRecords(tmp_path, {})
        if state is not None:
            records.load_state_dict(state)
        records.on_fit_start(trainer, None)
        return records

    first = begun()
    first.on_train_epoch_start(trainer, None)
    clock.now += 30
    state = first.state_dict()  # interrupted in the middle
    clock.now += 1000
    resumed = begun(state)
    clock.now += 12
    resumed.on_train_epoch_end(trainer, None)
    resumed.on_train_epoch_start(trainer, None)
    clock.now += 40
    resumed.on_train_epoch_end(trainer, None)
    assert resumed.seconds["epochs"] == [42.0, 40.0]
    assert resumed.state_dict()["fit"] == 82.0


@pytest.mark.slow
def test_memory_does_not_grow_with_epochs(tmp_path, monkeypatch):
    alive = []
    finished = RunRecords.on_train_epoch_end

    def count(self, trainer, module):
        finished(self, trainer, module)
        gc.collect()
        tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
        alive.append((len(tensors), sum(tensor.numel() for tensor in tensors)))

    monkeypatch.setattr(RunRecords, "on_train_epoch_end", count)
    train(job("train", tmp_path / "run", *TINY, "trainer.max_epochs=5"))
    assert len(alive) == 5
    assert alive[-1] == alive[1]
