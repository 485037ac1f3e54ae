"""Whole runs: what they leave behind, and that it is right."""

from __future__ import annotations

import csv
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from nsr.app.evaluate import evaluate
from nsr.app.train import train
from nsr.errors import RunStopped
from tests.conftest import TINY, job, made

ROOT = Path(__file__).parent.parent
FILES = ("metrics.json", "metrics.csv", "sensitivity.csv")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_files_of_a_run(trained):
    names = {path.name for path in trained.iterdir()}
    assert {*FILES, "config.yaml", "timing.json", "checkpoints", "csv"} <= names
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    metrics = rows(trained / "metrics.csv")
    assert [row["epoch"] for row in metrics] == ["0", "1", "2"]
    assert metrics[0]["train/loss"] == ""
    terms = ("loss", "adversarial_cross_entropy", "stabilizer", "robust_accuracy")
    assert all(float(metrics[1][f"train/{name}"]) >= 0 for name in terms)
    loss, parts = (
        float(metrics[1]["train/loss"]),
        sum(float(metrics[1][f"train/{name}"]) for name in ("adversarial_cross_entropy", "stabilizer")),
    )
    assert loss == pytest.approx(parts, rel=1e-6)
    timing = json.loads((trained / "timing.json").read_text())
    assert len(timing["epochs"]) == 2
    settings = OmegaConf.load(trained / "config.yaml")
    assert settings.train_attack.epsilon == 0.15
    assert "${" not in (trained / "config.yaml").read_text()


def test_the_final_figures(trained):
    figures = json.loads((trained / "metrics.json").read_text())
    for attack in ("clean", "fgsm", "pgd"):
        for prefix in ("test", "test_last"):
            accuracy = figures[f"{prefix}/{attack}_accuracy"]
            assert accuracy * 500 == pytest.approx(round(accuracy * 500), abs=1e-9)
    assert figures["last_epoch"] == 2
    validated = rows(trained / "metrics.csv")[figures["best_epoch"]]
    assert figures["validation/robust_accuracy"] == float(validated["validation/robust_accuracy"])
    best = max(float(row["validation/robust_accuracy"]) for row in rows(trained / "metrics.csv")[1:])
    assert figures["validation/robust_accuracy"] == best
    assert not any("second" in name or "time" in name for name in figures)


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
    from nsr.randomness import draw_seed

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
        clean, moved = (
            output.double().flatten(2) if output.ndim == 4 else output.double()[:, :, None] for output in outputs
        )
        absolute = (clean - moved).abs().mean((0, 2))
        activation = clean.abs().mean((0, 2))
        mine = [row for row in written if row["layer"] == layer]
        assert [int(row["neuron"]) for row in mine] == list(range(len(absolute)))
        for row, expected, active in zip(mine, absolute.tolist(), activation.tolist(), strict=True):
            assert float(row["absolute"]) == pytest.approx(expected, rel=1e-6)
            assert float(row["mean_activation"]) == pytest.approx(active, rel=1e-6)
            assert float(row["relative"]) == pytest.approx(
                expected / active if active else float("inf") if expected else 0, rel=1e-6
            )


def test_the_same_command_gives_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        train(job("train", tmp_path / name, *TINY))
    for name in FILES:
        first, second = ((tmp_path / run / name).read_bytes() for run in ("first", "second"))
        assert first == second, name
    train(job("train", tmp_path / "other", *TINY, "seed=1"))
    assert (tmp_path / "other" / "metrics.csv").read_bytes() != (tmp_path / "first" / "metrics.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["natural", "pgd", "pgd objective.clean_weight=0.5"])
def test_weight_zero_ends_as_none_does(tmp_path, objective):
    ends = []
    for choice in ("none", "sns stabilizer.weight=0"):
        directory = tmp_path / choice.split()[0]
        train(job("train", directory, *TINY, *f"objective={objective} stabilizer={choice}".split()))
        ends.append(torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_an_evaluation_repeats_the_runs_own(trained, tmp_path, capsys):
    evaluate(
        job(
            "evaluate",
            tmp_path / "evaluation",
            f"checkpoint={trained / 'checkpoints' / 'best.ckpt'}",
            "test_attacks=[clean,fgsm,pgd]",
            "test_attacks.pgd.steps=2",
        )
    )
    figures = json.loads((trained / "metrics.json").read_text())
    repeated = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert repeated == {name: value for name, value in figures.items() if name.startswith("test/")}
    table = rows(tmp_path / "evaluation" / "evaluation.csv")
    assert [row["attack"] for row in table] == ["clean", "fgsm", "pgd", "worst_case"]
    neurons = rows(tmp_path / "evaluation" / "sensitivity.csv")
    shown = capsys.readouterr().out
    relu4 = sorted((row for row in neurons if row["layer"] == "relu4"), key=lambda row: -float(row["absolute"]))
    assert f"{relu4[0]['neuron']} (" in next(line for line in shown.splitlines() if "relu4" in line)


def test_somebody_elses_weights(trained, tmp_path):
    saved = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    weights = {name.removeprefix("net.net."): value for name, value in saved.items() if name.startswith("net.net.")}
    torch.save(weights, tmp_path / "weights.pt")
    command = ["model=small_cnn", "model.width=4", f"model.weights={tmp_path / 'weights.pt'}", "data=digits"]
    command += ["model.normalization=data"]
    evaluate(
        job("evaluate", tmp_path / "evaluation", *command, "test_attacks=[clean,fgsm,pgd]", "test_attacks.pgd.steps=2")
    )
    figures = json.loads((trained / "metrics.json").read_text())
    assert json.loads((tmp_path / "evaluation" / "evaluation.json").read_text()) == {
        name: value for name, value in figures.items() if name.startswith("test/")
    }


def test_validation_measures_with_its_own_passes_alone(tmp_path, monkeypatch):
    """Sensitivity, histograms and taps add no pass: clean, adversarial, and the attack's."""
    from nsr.models import Classifier

    passes = []
    forward = Classifier.forward

    def counting(self, images):
        passes.append(torch.is_grad_enabled())
        return forward(self, images)

    tiny = [override for override in TINY if not override.startswith("test_attacks.")]
    config = job("train", tmp_path / "run", *tiny, "objective=natural", "stabilizer=none", "test_attacks=[clean]")
    before_training = len(passes)
    monkeypatch.setattr(Classifier, "forward", counting)
    train(config)
    finding_layers_and_width = 4  # two passes that find layers, one that finds the classes, one the objective's terms
    # 200 images are one batch: twice (epochs 0 and 1) 2 passes and 2 attack steps; 2 training steps; 2 batches of test
    assert len(passes) - before_training == finding_layers_and_width + 2 * (2 + 2) + 2 + 2


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(RunStopped, match=r"the loss is not finite at step \d+ \(epoch \d\)"):
        train(job("train", tmp_path / "run", *TINY, "optimizer=sgd", "optimizer.lr=1e30", "trainer.max_epochs=4"))
    assert len(rows(tmp_path / "run" / "metrics.csv")) >= 1
    kept = tmp_path / "run" / "checkpoints" / "last.ckpt"
    if kept.exists():
        state = torch.load(kept, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for name, value in state.items() if name.startswith("net."))


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting", ["trainer.precision=bf16-mixed", "channels_last=true", "model=resnet20 ~model.width"]
)
def test_settings_that_only_change_how_it_is_computed(tmp_path, setting):
    tiny = [override for override in TINY if not (override.startswith("model.width") and "resnet" in setting)]
    overrides = setting.split()[:1]
    assert 0 <= train(job("train", tmp_path / "run", *tiny, *overrides)) <= 1


def test_l2_and_fgsm_training(tmp_path):
    tiny = [override for override in TINY if not override.startswith("attack.")]
    train(job("train", tmp_path / "run", *tiny, "norm=l2", "train_attack=fgsm"))
    settings = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert (settings.train_attack.norm, settings.train_attack.epsilon, settings.train_attack.step_size) == (
        "l2",
        0.75,
        0.75,
    )


@pytest.mark.slow
def test_as_a_user_runs_it(tmp_path):
    """One run and its evaluation as processes: exit codes, the screen, a row an epoch, no traceback, no warning."""
    run = tmp_path / "run"
    command = [sys.executable, str(ROOT / "train.py"), *TINY[1:], f"hydra.run.dir={run}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("epoch ")] == ["0/1", "1/1"]
    for text in ("PGD-2, L-infinity 0.15", "best (epoch 1)", "relu4", "run directory", "try next"):
        assert text in done.stdout
    assert (run / "train.log").exists()
    offline = list((run / "wandb").glob("offline-run-*"))
    assert len(offline) == 1
    following = next(line for line in done.stdout.splitlines() if line.startswith("try next")).split("python ")[1]
    again = subprocess.run(
        [sys.executable, *shlex.split(following)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert "most sensitive neurons" in again.stdout
    assert list((run / "evaluations").glob("*/evaluation.json"))
    assert json.loads((run / "metrics.json").read_text())


@pytest.mark.slow
def test_a_broken_job_of_a_sweep_does_not_stop_the_others(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "-m", *TINY, f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    command += ["optimizer=sgd", "optimizer.lr=1e30,0.01"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode != 0
    assert "the loss is not finite" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "sweep" / "1" / "metrics.json").exists()


@pytest.mark.slow
def test_figures_are_float32_whatever_trained_the_network(tmp_path):
    """A run in bf16 reports what an evaluation of its checkpoint in float32 does."""
    train(job("train", tmp_path / "run", *TINY, "trainer.precision=bf16-mixed"))
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    evaluate(
        job(
            "evaluate",
            tmp_path / "evaluation",
            f"checkpoint={best}",
            "test_attacks=[clean,fgsm,pgd]",
            "test_attacks.pgd.steps=2",
        )
    )
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    repeated = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert repeated == {name: value for name, value in figures.items() if name.startswith("test/")}


@pytest.mark.slow
def test_memory_does_not_grow_with_epochs(tmp_path, monkeypatch):
    import gc

    from nsr.callbacks import RunRecords

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
