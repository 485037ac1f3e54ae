"""Whole runs with ramps, averaged weights, early stopping and schedules."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from reference import quiet_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nsr.app.train import train
from nsr.attacks import GradientAttack
from nsr.attacks.guard import AttackWrapper
from nsr.callbacks import Ramp, StepsRamp
from nsr.errors import InputError
from nsr.layers import find_layers
from nsr.models import Classifier
from nsr.objectives import Natural, Trades
from nsr.training.module import RobustClassifier
from tests.conftest import REPEATED, TINY, assert_repeats, evaluated, job, made, read_json, rows, without

BATCHES = 2  # an epoch, in TINY


def weights(path: Path, part: str = "state_dict") -> dict[str, torch.Tensor]:
    content = torch.load(path, weights_only=True)[part]
    return {name: value for name, value in content.items() if not name.startswith("stabilizer")}


SLOW = pytest.mark.slow
OBJECTIVES = ("free", "natural", "fast", "nfgsm", "alp", "mart", "ensemble_adversarial")
TINY_ATTACK = without("train_attack.steps")  # of an objective that brings its own


@pytest.mark.parametrize(
    "objective",
    [pytest.param(name, marks=SLOW) for name in ("trades", *OBJECTIVES)],
)
def test_every_objective_trains_from_the_command_line(tmp_path, trained, objective):
    """With the stabilizer, its terms in the records; weight 0 ends bit-identically to none."""
    fixed, ends = trained / "checkpoints" / "best.ckpt", {}
    own = [f"train_attack.checkpoints=[{fixed}]"] if objective == "ensemble_adversarial" else []
    for name, choice in (("sns", "sns"), ("zero", "sns stabilizer.weight=0"), ("none", "none")):
        choices = [f"objective={objective}", *own, *f"stabilizer={choice}".split()]
        train(job("train", tmp_path / name, *TINY_ATTACK, *choices))
        ends[name] = weights(tmp_path / name / "checkpoints" / "last.ckpt")
    assert all(torch.equal(ends["zero"][key], ends["none"][key]) for key in ends["none"])
    assert not all(torch.equal(ends["sns"][key], ends["none"][key]) for key in ends["none"])
    assert ends["none"].keys() == weights(fixed).keys()  # fixed networks are no part of the checkpoint
    row = rows(tmp_path / "sns" / "metrics.csv")[-1]
    terms = [key for key in row if key.startswith("train/") and not key.endswith("accuracy") and key != "train/loss"]
    assert "train/stabilizer" in terms
    assert float(row["train/loss"]) == pytest.approx(sum(float(row[term]) for term in terms), rel=1e-5)
    assert "train/stabilizer" not in rows(tmp_path / "none" / "metrics.csv")[-1]


def test_the_ramps_follow_the_steps(tmp_path, monkeypatch):
    seen = []
    step = RobustClassifier.training_step

    def spy(self, batch, batch_idx):
        seen.append((self.train_attack.scale, self.stabilizer.scale))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(RobustClassifier, "training_step", spy)
    overrides = ["callbacks=[epsilon_ramp,stabilizer_ramp]", "callbacks.epsilon_ramp.epochs=1.5"]
    overrides += ["callbacks.stabilizer_ramp.start=1", "callbacks.stabilizer_ramp.epochs=1", "trainer.max_epochs=3"]
    train(job("train", tmp_path / "run", *TINY, *overrides))
    epsilon, weight = zip(*seen, strict=True)
    assert epsilon == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])
    assert weight == pytest.approx([0, 0, 0.5, 1, 1, 1])
    written = [float(row["train/stabilizer"]) for row in rows(tmp_path / "run" / "metrics.csv")[1:]]
    assert written[0] == 0 < written[1]


@pytest.mark.parametrize(
    ("settings", "steps", "expected"),
    [
        ({"epochs": 4}, 10, [1, 3, 6, 8, 10, 10]),  # 1, 3.25, 5.5, 7.75, 10: halves up
        ({"epochs": 2, "start": 1, "initial": 2}, 7, [2, 2, 5, 7, 7, 7]),
        ({"epochs": 2, "initial": 4}, 1, [4, 3, 1, 1, 1, 1]),
    ],
)
def test_the_steps_ramp_is_linear_and_the_step_size_follows_its_rule(settings, steps, expected):
    ramp, attack = StepsRamp(**settings), GradientAttack(epsilon=0.4, steps=steps)
    module = SimpleNamespace(train_attack=attack, attacks=True, stabilizer=None)
    ramp.setup(SimpleNamespace(max_epochs=6), module, "fit")
    for epoch, number in enumerate(expected):
        ramp.on_train_batch_start(SimpleNamespace(current_epoch=epoch), module, None, 3)
        assert (attack.steps, attack.step_size) == (number, 2.5 * 0.4 / number)
    ramp.teardown(None, module, "fit")
    assert attack.steps == steps


@pytest.mark.slow
def test_a_steps_ramp_without_steps(refused):
    text = refused("train", *TINY_ATTACK, "callbacks=[steps_ramp]", "objective=natural", "stabilizer=none")
    assert "callbacks has a ramp of the train_attack, but this run has none" in text
    text = refused("train", *TINY_ATTACK, "callbacks=[steps_ramp]", "objective=free")
    assert "steps, a KeptPerturbation without attribute steps; leave the ramp out" in text
    assert "the ramp never starts" in refused("train", *TINY, "callbacks=[steps_ramp]", "callbacks.steps_ramp.start=3")


def test_a_ramp_from_a_part_of_the_value():
    module = SimpleNamespace(train_attack=SimpleNamespace(scale=1.0))
    ramp = Ramp(of="train_attack", epochs=2, start=1, initial=0.25)
    for epoch, expected in enumerate([0.25, 0.625, 1.0, 1.0]):  # at the end of the epoch, of one step each
        trainer = SimpleNamespace(current_epoch=epoch, num_training_batches=1)
        ramp.on_train_batch_start(trainer, module, None, 0)
        assert module.train_attack.scale == pytest.approx(expected)


@pytest.mark.parametrize("wrapped", [False, True])
def test_ramps_and_objectives_change_the_training_attack_alone(wrapped):
    """One object may attack in training, in validation and in a further training."""
    torch.manual_seed(0)
    images, labels = torch.rand(8, 1, 4, 4), torch.arange(8) % 3
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    attack = own = GradientAttack(epsilon=0.1, steps=4)
    if wrapped:
        attack = AttackWrapper()
        attack.attack = own
    settings = {"layers": find_layers(net, images[:2]), "classes": 3, "optimizer": partial(torch.optim.SGD, lr=0.1)}
    module = RobustClassifier(net, objective=Trades(), train_attack=attack, validation_attack=attack, **settings)
    training = module.train_attack.attack if wrapped else module.train_attack
    seen = []

    def training_step(batch, batch_idx):
        seen.append([(each.scale, each.steps, each.loss) for each in (training, own)])
        return net(batch[0]).sum()

    module.training_step = training_step
    ramps = [Ramp(of="train_attack", epochs=4), *([] if wrapped else [StepsRamp(epochs=2)])]
    loader = DataLoader(TensorDataset(images, labels), batch_size=8)
    quiet_trainer(max_epochs=1, num_sanity_val_steps=0, callbacks=ramps).fit(module, loader, loader)
    assert seen == [[(0.25, 4 if wrapped else 1, None if wrapped else "kl"), (1.0, 4, None)]]
    assert (training.scale, training.steps, own.scale, own.steps, own.loss) == (1.0, 4, 1.0, 4, None)
    assert RobustClassifier(net, objective=Natural(), train_attack=own, **settings).train_attack.loss is None


@pytest.mark.slow
def test_a_stabilizer_at_the_start_of_its_ramp_costs_no_pass(monkeypatch, tmp_path):
    counted = {}
    forward = Classifier.forward
    for name, extra in {
        "none": ["stabilizer=none"],
        "held": ["callbacks=[stabilizer_ramp]", "callbacks.stabilizer_ramp.start=1", "trainer.max_epochs=2"],
    }.items():
        passes = []
        counting = lambda self, x, p=passes: (p.append(self.training), forward(self, x))[1]  # noqa: E731
        monkeypatch.setattr(Classifier, "forward", counting)
        stopped = SimpleNamespace(first=None)
        end = RobustClassifier.on_train_batch_end

        def at_end(self, outputs, batch, batch_idx, p=passes, s=stopped, end=end):
            if s.first is None and batch_idx == BATCHES - 1:
                s.first = sum(p)
            return end(self, outputs, batch, batch_idx)

        monkeypatch.setattr(RobustClassifier, "on_train_batch_end", at_end)
        train(job("train", tmp_path / name, *TINY, *extra))
        monkeypatch.setattr(RobustClassifier, "on_train_batch_end", end)
        counted[name] = stopped.first
    assert counted["held"] == counted["none"]


@pytest.mark.slow
def test_averaged_weights_are_validated_kept_and_tested(tmp_path, monkeypatch):
    decay = 0.6
    trajectory, validated = [], []
    end, validate = RobustClassifier.on_train_batch_end, RobustClassifier.on_validation_epoch_start

    def after_step(self, outputs, batch, batch_idx):
        trajectory.append({name: value.detach().clone() for name, value in self.net.named_parameters()})
        return end(self, outputs, batch, batch_idx)

    def at_validation(self):
        validated.append({name: value.detach().clone() for name, value in self.net.named_parameters()})
        return validate(self)

    monkeypatch.setattr(RobustClassifier, "on_train_batch_end", after_step)
    monkeypatch.setattr(RobustClassifier, "on_validation_epoch_start", at_validation)
    overrides = ["callbacks=[ema]", f"callbacks.ema.decay={decay}", "trainer.max_epochs=3"]
    train(job("train", tmp_path / "run", *TINY, *overrides))
    average, expected = None, []
    for number, weights_ in enumerate(trajectory):
        average = weights_ if average is None else {k: decay * average[k] + (1 - decay) * weights_[k] for k in weights_}
        if number % BATCHES == BATCHES - 1:
            expected.append(average)
    for got, wanted in zip(validated[1:], expected, strict=True):  # the first is before training
        for name in wanted:
            torch.testing.assert_close(got[name], wanted[name], rtol=1e-5, atol=1e-6)
    kept = weights(tmp_path / "run" / "checkpoints" / "last.ckpt")
    for name, value in expected[-1].items():
        torch.testing.assert_close(kept[f"net.{name}"], value, rtol=1e-5, atol=1e-6)
        assert not torch.equal(kept[f"net.{name}"], trajectory[-1][name])
    checkpoint = f"checkpoint={tmp_path / 'run' / 'checkpoints' / 'best.ckpt'}"
    assert_repeats(tmp_path / "run", evaluated(tmp_path / "evaluation", checkpoint, *REPEATED))


@pytest.mark.slow
def test_weight_perturbation_from_the_command_line(tmp_path):
    ends = []
    awp = ["callbacks=[awp]"]
    for name, extra in {"plain": [], "awp": awp, "late": [*awp, "callbacks.awp.warmup=1"]}.items():
        train(job("train", tmp_path / name, *TINY, *extra))
        ends.append(weights(tmp_path / name / "checkpoints" / "last.ckpt"))
    plain, moved, late = ends
    assert not all(torch.equal(plain[key], moved[key]) for key in plain)
    assert all(torch.equal(plain[key], late[key]) for key in plain)


@pytest.mark.slow
def test_early_stopping_ends_a_complete_run(tmp_path):
    # at this rate nothing is learnt: robust accuracy does not rise
    overrides = ["callbacks=[early_stopping]", "callbacks.early_stopping.patience=2", "trainer.max_epochs=9"]
    train(job("train", tmp_path / "run", *TINY, *overrides, "optimizer.lr=1e-12"))
    metrics = read_json(tmp_path / "run" / "metrics.json")
    assert metrics["last_epoch"] == 3
    assert "test_last/pgd_accuracy" in metrics


@pytest.mark.parametrize(
    ("scheduler", "epochs", "expected"),
    [
        ("cosine", 2, [1, 0.5]),
        pytest.param("piecewise", 4, [1, 1, 0.1, 0.01], marks=SLOW),
        pytest.param("constant", 2, [1, 1], marks=SLOW),
    ],
)
def test_schedules_of_epochs(tmp_path, scheduler, epochs, expected):
    train(job("train", tmp_path / "run", *TINY, f"scheduler={scheduler}", f"trainer.max_epochs={epochs}"))
    rates = [float(row["learning_rate"]) / 0.005 for row in rows(tmp_path / "run" / "metrics.csv")[1:]]
    assert rates == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["pgd", "free objective.replays=3"])
def test_one_cycle_counts_optimizer_steps(tmp_path, monkeypatch, objective):
    rates = []
    step = torch.optim.Adam.step

    def spy(self, *arguments, **settings):
        if not arguments:  # of a run; the trial before it hands a closure
            rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **settings)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    overrides = ["scheduler=one_cycle", f"trainer.max_epochs={6 if 'free' in objective else 4}"]
    train(job("train", tmp_path / "run", *TINY_ATTACK, *f"objective={objective}".split(), *overrides))
    steps = 2 * BATCHES * 3 if "free" in objective else 4 * BATCHES
    assert len(rates) == steps  # free: six epochs of the command are two of three replays
    other = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        other, max_lr=0.005, total_steps=steps, pct_start=0.4, anneal_strategy="linear", cycle_momentum=False
    )
    expected = []
    for _ in range(steps):
        expected.append(other.param_groups[0]["lr"])
        other.step()
        schedule.step()
    assert rates == pytest.approx(expected)


def test_free_training_divides_the_epochs(tmp_path):
    train(job("train", tmp_path / "run", *TINY_ATTACK, "objective=free", "objective.replays=4", "trainer.max_epochs=7"))
    assert [row["epoch"] for row in rows(tmp_path / "run" / "metrics.csv")] == ["0", "1", "2"]
    settings = (tmp_path / "run" / "config.yaml").read_text()
    assert "max_epochs: 7" in settings  # what was asked for, so that it can be asked for again
    kept = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["perturbations"]
    assert kept.shape[0] == 1
    assert 0 < float(kept.abs().max()) <= 0.15 + 1e-6


@pytest.mark.parametrize("refresh", ["epoch", *(pytest.param(name, marks=SLOW) for name in ("average", "once"))])
def test_the_stabilizer_scores_are_in_the_checkpoint(tmp_path, refresh):
    train(job("train", tmp_path / "run", *TINY, f"stabilizer.refresh={refresh}", "trainer.max_epochs=2"))
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    scores = saved["state_dict"]["stabilizer._extra_state"]
    assert list(scores) == ["relu1", "relu2", "relu3", "relu4"]
    if refresh == "average":
        return
    epoch = {"once": "0", "epoch": "2"}[refresh]
    written = [row for row in rows(tmp_path / "run" / "sensitivity.csv") if row["epoch"] == epoch]
    flat = torch.cat(list(scores.values())).tolist()
    assert flat == pytest.approx([float(row["absolute"]) for row in written], rel=1e-12)


def test_a_ramp_of_nothing():
    ramp = Ramp(of="stabilizer", epochs=1)
    with pytest.raises(InputError, match="a ramp of the stabilizer, but this run has none"):
        ramp.check(SimpleNamespace(stabilizer=None), 3)
    with pytest.raises(InputError, match="it must be one of train_attack, stabilizer"):
        Ramp(of="learning_rate", epochs=1)
    callbacks = made("train", *TINY, "callbacks=[stabilizer_ramp,epsilon_ramp]", "trainer.max_epochs=6").callbacks
    assert len({ramp.state_key for ramp in callbacks.values()}) == 2
