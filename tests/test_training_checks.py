"""The checks of training: hand-made histories, then nets that fail in training, each beside one that does not."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nsr.app.instantiation import instantiate
from nsr.app.job import make_job
from nsr.app.rules import TRAINING_CHECKS
from nsr.app.train import train
from nsr.attacks import EnsembleAttack, GradientAttack, KeptPerturbation, guarded
from nsr.callbacks import TrainingChecks
from nsr.callbacks.checkpoints import Checkpoints
from nsr.callbacks.checks import _as_wide
from nsr.callbacks.training_checks import RULES, Epoch, noise
from nsr.data import ImageData
from nsr.errors import InputError, RunStopped
from nsr.evaluation import report
from nsr.models import Classifier
from nsr.randomness import draw_seed
from tests.conftest import TINY, in_a_process, job, rows, without

ROOT = Path(__file__).parent.parent
CLASSES = 10


def history(*epochs: dict, **common) -> list[Epoch]:
    """Epochs of an ordinary run with these changes."""
    ordinary = dict(clean=0.9, robust=0.5, images=1000, strong_images=1000, training=0.55, most_predicted=0.15)
    ordinary |= dict(expected=0.1, least_sensitive=("relu", 1.0, 1.0))
    made = [{**ordinary, **common, "number": number, **epoch} for number, epoch in enumerate(epochs)]
    made[0]["training"] = None  # before training
    return [Epoch(**{"strong": epoch["robust"], **epoch}) for epoch in made]


def is_raised(name: str, epochs: list[Epoch]) -> bool | None:
    triggered, evidence = RULES[name].evaluate(epochs, classes=CLASSES)
    assert "\n" not in evidence
    assert evidence.startswith("not evaluated") == (triggered is None)
    return triggered


def robust(*values: float) -> list[dict]:
    return [{"robust": value} for value in values]


# ---------------------------------------------------------------- catastrophic overfitting
@pytest.mark.parametrize(
    ("epochs", "triggered"),
    [
        (robust(0, 0.3, 0.4, 0.0, 0.0), True),  # as in Wong et al.: at once, to nothing
        (robust(0, 0.3, 0.4, 0.0), False),  # one epoch may be a slip
        (robust(0, 0.3, 0.0, 0.4, 0.0), False),
        (robust(0, 0.02, 0.03), True),  # it never withstood anything but the step
        (robust(0, 0.3, 0.4, 0.45), False),
        # a quarter of 0.55 of the 90 % right ones
        (robust(0, 0.3, 0.124, 0.124), False),
        (robust(0, 0.3, 0.123, 0.123), True),
        # clean accuracy is lost as well: no sign of a weak attack
        ([*robust(0, 0.5), *[{"robust": 0.09, "clean": 0.3}] * 2], False),
        ([*robust(0, 0.5), *[{"robust": 0.0, "clean": 0.27}] * 2], False),  # nothing is right that could be fooled
        # the first epochs: training has learnt nothing yet
        ([*robust(0), *[{"robust": 0.0, "training": 0.27}] * 2], False),
        ([*robust(0), *[{"robust": 0.0, "training": 0.29}] * 2], True),
        # natural training, or the ramp of epsilon: no such accuracy
        ([*robust(0), *[{"robust": 0.0, "training": None}] * 2], None),
        ([*robust(0), {"robust": 0.0, "training": None}, {"robust": 0.0}], False),
        # an FGSM validation is blind to it, its probe is not
        ([*robust(0), *[{"robust": 0.9, "strong": 0.0}] * 2], True),
        # so few images show nothing
        ([*robust(0), *[{"robust": 0.12, "strong_images": 8}] * 2], False),
        ([*robust(0), *[{"robust": 0.12, "strong_images": 100}] * 2], True),
    ],
)
def test_catastrophic_overfitting(epochs, triggered):
    assert is_raised("catastrophic_overfitting", history(*epochs)) is triggered


def test_its_evidence_has_the_metrics():
    epochs = history(*robust(0.9, 0.3, 0.4, 0.018))  # before training anything is possible, and means nothing
    _, evidence = RULES["catastrophic_overfitting"].evaluate(epochs, classes=CLASSES)
    assert "2.0 % of the correctly classified validation images" in evidence
    assert "accuracy 1.8 %, at best 40.0 % in epoch 2" in evidence
    assert "in training 55.0 %" in evidence


# ---------------------------------------------------------------- robust overfitting
def overfitting(*, best: float = 0.5, last: float = 0.4, training: float = 0.9, **common) -> list[Epoch]:
    """Five epochs at the best and five at the last."""
    early = [{"robust": best, "training": 0.5}] * 5
    return history({"training": None}, *early, *[{"robust": last, "training": training}] * 5, **common)


@pytest.mark.parametrize(
    ("epochs", "triggered"),
    [
        (overfitting(), True),
        (overfitting(last=0.5), False),
        (overfitting(last=0.6), False),
        (overfitting(training=0.505), False),  # it does not rise: the run is broken in another way
        (overfitting(training=0.4), False),
        (overfitting(images=100), False),  # ten points of a hundred images are noise
        (overfitting(images=200), True),
        (overfitting(last=0.471, images=100_000), False),  # less than three points, however sure
        (overfitting(last=0.469, images=100_000), True),
        (overfitting(last=0.02), False),  # that is the catastrophic kind
        (overfitting()[:-1], None),  # fewer than ten epochs
        (overfitting()[:8], None),
        (history({}, *[{"training": None}] * 12), None),
        # the ramp's epochs do not count
        (history({}, *[{"robust": 0.9, "training": None}] * 5, *[{"training": 0.5 + n / 50} for n in range(9)]), None),
    ],
)
def test_robust_overfitting(epochs, triggered):
    assert is_raised("robust_overfitting", epochs) is triggered


def test_one_lucky_epoch_is_no_best():
    values = [0.5, 0.5, 0.6, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    epochs = history({}, *({"robust": value, "training": 0.5 + n / 50} for n, value in enumerate(values)))
    assert is_raised("robust_overfitting", epochs) is False


def test_the_best_epochs_are_found_wherever_they_are():
    """Against every pair of windows that do not overlap, one by one."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        values = (0.4 + 0.2 * torch.rand(14, generator=generator, dtype=torch.float64)).tolist()
        epochs = history({}, *({"robust": v, "training": 0.5 + n / 50} for n, v in enumerate(values)), images=2000)
        last = sum(values[9:]) / 5
        lost = [sum(values[start : start + 5]) / 5 - last for start in range(5)]
        limits = [max(0.03, noise(loss + last, last, 2000)) for loss in lost]
        best = max(range(5), key=lost.__getitem__)
        assert is_raised("robust_overfitting", epochs) is (lost[best] > limits[best])


def test_noise_is_two_standard_errors():
    """Of simulated differences of two equal shares, 95 % lie within."""
    draws = torch.distributions.Binomial(400, torch.tensor(0.3)).sample((2, 20_000)) / 400
    within = ((draws[0] - draws[1]).abs() < noise(0.3, 0.3, 400)).double().mean()
    assert 0.93 < float(within) < 0.97


# ---------------------------------------------------------------- one class, a constant
@pytest.mark.parametrize(
    ("epochs", "triggered"),
    [
        ([{}, *[{"most_predicted": 1.0}] * 3], True),
        ([{}, *[{"most_predicted": 0.92}] * 3], True),
        ([{}, *[{"most_predicted": 0.9}] * 3], False),
        ([{"most_predicted": 1.0}] * 3, False),  # two epochs of training: networks begin so
        ([{}, {"most_predicted": 1.0}, {}, *[{"most_predicted": 1.0}] * 2], False),
        # nine images of ten are of that class: an honest answer, until it is the only one
        ([{}, *[{"most_predicted": 0.98, "expected": 0.9}] * 3], False),
        ([{}, *[{"most_predicted": 0.995, "expected": 0.9}] * 3], True),
    ],
)
def test_single_class(epochs, triggered):
    assert is_raised("single_class", history(*epochs)) is triggered


STILL = {"least_sensitive": ("still", 1e-5, 0.1), "clean": 0.1, "robust": 0.1}


@pytest.mark.parametrize(
    ("epochs", "triggered"),
    [
        ([{}, *[STILL] * 3], True),
        ([{}, *[{**STILL, "least_sensitive": ("still", 0.0, 0.1), "clean": 0.12, "robust": 0.12}] * 3], True),
        ([{}, *[STILL] * 2], False),
        ([{}, STILL, {}, *[STILL] * 2], False),  # it recovers, and the count restarts
        ([{}, STILL, {}, *[STILL] * 3], True),
        ([{}, *[{**STILL, "clean": 0.5, "robust": 0.5}] * 7], False),  # it learns
        ([{}, *[{**STILL, "least_sensitive": ("still", 0.05, 0.1)}] * 7], False),  # it moves
        ([{}, *[{**STILL, "robust": 0.05}] * 7], False),  # the attack does something
        ([{}, *[{**STILL, "least_sensitive": None}] * 3], None),  # no stabilizer
    ],
)
def test_a_constant(epochs, triggered):
    assert is_raised("collapsed_network", history(*epochs)) is triggered


# ---------------------------------------------------------------- what is compared
@pytest.mark.parametrize(
    ("training", "expected"),
    [
        (GradientAttack(epsilon=0.1, steps=1), True),
        (GradientAttack(epsilon=0.2, steps=1), True),
        (GradientAttack(epsilon=0.09, steps=10), False),  # well within its robustness
        (GradientAttack(epsilon=0.1, steps=1, norm="l2"), False),
        (KeptPerturbation(epsilon=0.1), True),
        (EnsembleAttack(attack=GradientAttack(epsilon=0.1, steps=1), networks=[torch.nn.Identity()]), True),
        (guarded(lambda net, images, labels: images, epsilon=0.1), True),
        (guarded(lambda net, images, labels: images, epsilon=0.09), False),
        (lambda net, images, labels: images, False),
    ],
    ids=[
        "as wide",
        "wider",
        "narrower",
        "another norm",
        "free",
        "ensemble",
        "function",
        "narrower function",
        "unknown",
    ],
)
def test_accuracies_are_compared_where_training_attacks_as_widely(training, expected):
    validation = GradientAttack(epsilon=0.1, steps=10)
    module = SimpleNamespace(views=("adversarial",), train_attack=training, validation_attack=validation)
    assert _as_wide(module) is expected
    if expected:
        training.scale = 0.99  # a ramp
        assert _as_wide(module) is False
        training.scale = 1.0
        module.views = ("clean",)
        assert _as_wide(module) is False


# ---------------------------------------------------------------- whole runs
def checks_of(run: Path) -> dict[str, dict]:
    return {check["name"]: check for check in json.loads((run / "checks.json").read_text())}


ONE_STEP = (  # FGSM as its authors' code makes it, at an epsilon that it cannot learn
    *("logger=csv", "trainer.accelerator=cpu", "stabilizer=none", "train_attack=fgsm", "train_attack.batch_norm=batch"),
    "epsilon=0.3",
    *("optimizer.lr=0.001", "scheduler=constant", "trainer.max_epochs=8", "test_attacks=[clean]"),
)


@pytest.mark.slow
def test_single_step_training_at_a_large_epsilon_is_stopped(tmp_path, caplog):
    caplog.set_level("INFO")
    run = tmp_path / "run"
    stop = "checks.stop_on=[catastrophic_overfitting]"
    with pytest.raises(RunStopped, match=r"checks\.stop_on: .*catastrophic_overfitting\), epoch \d: ") as caught:
        train(job("train", run, *ONE_STEP, stop))
    check = checks_of(run)["catastrophic_overfitting"]
    assert check["triggered"] is True
    assert check["evidence"] in str(caught.value)
    last = rows(run / "metrics.csv")[-1]
    assert int(last["epoch"]) == check["epoch"] < 8  # at the end of that epoch, whose records and checkpoint are kept
    kept = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["nsr_place"]["epochs"] == check["epoch"]
    assert (run / "timing.json").exists()
    assert not (run / "metrics.json").exists()
    assert [record.levelname for record in caplog.records if "catastrophic_overfitting" in record.message] == ["INFO"]


@pytest.mark.slow
def test_the_command_ends_with_one_line(tmp_path):
    stop = "checks.stop_on=[single_class,catastrophic_overfitting]"
    done = in_a_process("train.py", *ONE_STEP, stop, f"hydra.run.dir={tmp_path / 'run'}", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: checks.stop_on: ")
    assert "catastrophic overfitting: gradients are masked" in done.stderr
    assert "catastrophic_overfitting" in (tmp_path / "run" / "train.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "triggered"),
    [("train_attack=fgsm train_attack.batch_norm=batch", True), ("train_attack=pgd train_attack.steps=5", False)],
)
def test_at_one_epsilon_one_step_overfits_and_several_do_not(tmp_path, attack, triggered):
    settings = [setting for setting in ONE_STEP if not setting.startswith(("attack=", "attack.", "epsilon"))]
    settings += ["epsilon=0.28", "trainer.max_epochs=12", *attack.split()]
    train(job("train", tmp_path / "run", *settings))
    check = checks_of(tmp_path / "run")["catastrophic_overfitting"]
    assert check["triggered"] is triggered, check["evidence"]
    last = rows(tmp_path / "run" / "metrics.csv")[-1]
    assert float(last["train/robust_accuracy"]) > 0.3  # enough is learnt for an evaluation


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [0.4, 0.0])
def test_labels_learnt_by_heart_overfit(tmp_path, monkeypatch, wrong):
    """200 training images, two labels of five drawn at random: robust accuracy falls while they are memorised."""
    setup = ImageData.setup

    def with_wrong_labels(self, stage=None):
        is_first = self.training_set is None
        setup(self, stage)
        if is_first and self.training_set is not None:
            labels, generator = self.training_set.labels, torch.Generator().manual_seed(0)
            drawn = torch.randint(10, labels.shape, generator=generator)
            changed = torch.rand(len(labels), generator=generator) < wrong
            self.training_set.labels = torch.where(changed, drawn, labels)

    monkeypatch.setattr(ImageData, "setup", with_wrong_labels)
    settings = ["logger=csv", "trainer.accelerator=cpu", "stabilizer=none", "scheduler=constant"]
    settings += ["test_attacks=[clean]"]
    settings += ["data.validation_images=1097", "epsilon=0.08", "train_attack.steps=2", "validation_attack.steps=2"]
    train(job("train", tmp_path / "run", *settings, "trainer.max_epochs=32"))
    triggered = {name: check["triggered"] for name, check in checks_of(tmp_path / "run").items()}
    assert triggered.pop("robust_overfitting") is (wrong > 0)
    assert not any(triggered.values())


@pytest.mark.slow
def test_a_network_of_one_answer(tmp_path, capsys, caplog):
    """A learning rate that destroys it, reported in one line and in the table; its counterpart learns."""
    tiny = [*without("trainer.limit", "trainer.max", "test_attacks."), "objective=natural", "stabilizer=none"]
    tiny += ["trainer.max_epochs=5", "scheduler=constant", "test_attacks=[clean]"]
    train(job("train", tmp_path / "run", *tiny, "optimizer.lr=100"))
    check = checks_of(tmp_path / "run")["single_class"]
    assert check["triggered"] is True, check["evidence"]
    shown = capsys.readouterr().out
    assert "checks of this training" in shown
    assert "callbacks=[epsilon_ramp]" in "".join(shown.split())  # no markup of rich's
    (logged,) = [record for record in caplog.records if "single_class" in record.message]
    assert logged.levelname == "WARNING"
    assert "\n" not in logged.message
    assert check["evidence"] in logged.message
    assert check["meaning"] in logged.message

    train(job("train", tmp_path / "counterpart", *tiny))
    assert checks_of(tmp_path / "counterpart")["single_class"]["triggered"] is False
    assert "checks of this training" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_whose_stabilizer_wins_is_stopped(tmp_path):
    """The sum over layers and neurons at a weight made for the mean; `constant` stops without being asked for."""
    overrides = without("trainer.limit")
    overrides += ["stabilizer.reduction=sum", "stabilizer.weight=20", "trainer.max_epochs=12"]
    with pytest.raises(RunStopped, match=r"to a constant \(check collapsed_network\).*stabilizer\.weight"):
        train(job("train", tmp_path / "run", *overrides))
    assert len(rows(tmp_path / "run" / "metrics.csv")) >= 4  # nothing is lost
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.slow
def test_what_stops_is_a_choice(tmp_path):
    overrides = without("trainer.limit")
    overrides += ["stabilizer.reduction=sum", "stabilizer.weight=20", "trainer.max_epochs=8", "checks.stop_on=[]"]
    train(job("train", tmp_path / "run", *overrides))
    assert checks_of(tmp_path / "run")["collapsed_network"]["triggered"] is True
    logged = rows(tmp_path / "run" / "csv" / "metrics.csv")
    name = "checks/collapsed_network"
    flags = {float(row["epoch"]): float(row[name]) for row in logged if row[name]}
    assert list(flags) == list(range(9))
    first = checks_of(tmp_path / "run")["collapsed_network"]["epoch"]
    assert next(epoch for epoch, flag in flags.items() if flag) == first
    assert flags[first - 1] == 0


def test_stop_on_is_checked():
    with pytest.raises(InputError, match="checks.stop_on entry is 'single_clas'.*did you mean 'single_class'"):
        TrainingChecks(stop_on=["single_clas"])
    assert tuple(RULES) == TRAINING_CHECKS


def test_the_page_has_every_check_of_training():
    page = (ROOT / "docs" / "checks.md").read_text()
    assert all(f"| `{name}` | {rule.title} |" in page for name, rule in RULES.items())


# ---------------------------------------------------------------- the same after resuming
def fitted(folder: Path, epochs: int, *, resumed: Path | None = None) -> TrainingChecks:
    settings = ["stabilizer.reduction=sum", "stabilizer.weight=20", "scheduler=constant"]
    config = job("train", folder, *without("trainer.limit"), *settings, f"trainer.max_epochs={epochs}")
    torch.manual_seed(0)  # of the weights
    made_job = make_job(config, "train")
    data, module = made_job.data, made_job.module
    checks = TrainingChecks(folder, stop_on=[])
    callbacks = [Checkpoints(folder), checks]
    trainer = instantiate(config.trainer, "trainer", logger=False, callbacks=callbacks)
    trainer.fit(module, datamodule=data, ckpt_path=resumed, weights_only=True)
    return checks


@pytest.mark.slow
def test_resuming_evaluates_the_same(tmp_path):
    whole = fitted(tmp_path / "whole", 7)
    assert whole.first["collapsed_network"][0] > 2  # it needs epochs of both parts
    fitted(tmp_path / "part", 2)
    again = fitted(tmp_path / "again", 7, resumed=tmp_path / "part" / "last.ckpt")
    assert again.history == whole.history
    assert (tmp_path / "again" / "checks.json").read_bytes() == (tmp_path / "whole" / "checks.json").read_bytes()


# ---------------------------------------------------------------- what it costs
def passes(run: Path, monkeypatch, *overrides: str) -> int:
    """Images that went through the network in a run of two epochs."""
    counted = []
    forward = Classifier.forward
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "forward", lambda net, images: (counted.append(len(images)), forward(net, images))[1])
        train(job("train", run, *TINY, "trainer.max_epochs=2", "data.evaluation_batch_size=30", *overrides))
    return sum(counted)


class Nothing(TrainingChecks):
    """The callback without its hooks."""

    def on_validation_batch_end(self, *arguments, **settings):
        pass

    on_validation_end = on_validation_batch_end


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "images"),
    [
        ("validation_attack=pgd", 0),
        # two epochs of ten steps and one look at each seventh of 200 images: no more than the batch of 30
        ("validation_attack=fgsm ~validation_attack.steps", 2 * 11 * 29),
        ("validation_attack=fgsm ~validation_attack.steps objective=natural", 0),
    ],
)
def test_passes(tmp_path, monkeypatch, choice, images):
    overrides = [override for override in choice.split() if not override.startswith("~")]
    if "fgsm" in choice:
        overrides.append("validation_attack.steps=1")
    with_checks = passes(tmp_path / "with", monkeypatch, *overrides)
    monkeypatch.setattr("nsr.app.train.TrainingChecks", Nothing)
    assert with_checks - passes(tmp_path / "without", monkeypatch, *overrides) == images


@pytest.mark.slow
def test_the_probe_is_pgd_on_an_even_choice_of_images(tmp_path):
    folder = tmp_path / "run"
    overrides = ["validation_attack=fgsm", "validation_attack.steps=1", "data.evaluation_batch_size=30", "seed=3"]
    config = job("train", folder, *TINY, "trainer.limit_train_batches=1.0", "trainer.max_epochs=3", *overrides)
    made_job = make_job(config, "train")
    data, module = made_job.data, made_job.module
    checks = TrainingChecks(folder)
    trainer = instantiate(config.trainer, "trainer", logger=False, enable_checkpointing=False, callbacks=[checks])
    trainer.fit(module, datamodule=data)
    net, right = module.net.eval(), 0
    for number in range(7):
        indices = [image for image in range(30 * number, min(200, 30 * number + 30)) if image % 7 == 0]
        images, labels = data.validation_set.images[indices], data.validation_set.labels[indices]
        generator = torch.Generator().manual_seed(draw_seed(3, 2, number))
        adversarial = GradientAttack(epsilon=0.15, steps=10)(net, images, labels, generator=generator)
        with torch.no_grad():
            right += int((net(adversarial).argmax(1) == labels).sum())
    last = checks.history[-1]
    assert (last.strong, last.strong_images) == (right / 29, 29)
    assert 0 < last.strong < last.robust  # one step is the weaker attack
    assert checks.history[0].strong == checks.history[0].robust  # before training there is nothing to look for


def test_the_classes_predicted_are_those_of_the_network(tmp_path):
    folder = tmp_path / "run"
    config = job("train", folder, *TINY, "data.evaluation_batch_size=30")
    made_job = make_job(config, "train")
    data, module = made_job.data, made_job.module
    checks = TrainingChecks()
    trainer = instantiate(config.trainer, "trainer", logger=False, enable_checkpointing=False, callbacks=[checks])
    trainer.fit(module, datamodule=data)
    with torch.no_grad():
        predicted = module.net.eval()(data.validation_set.images).argmax(1).tolist()
    most = max(range(10), key=predicted.count)
    last = checks.history[-1]
    assert last.images == 200
    assert last.most_predicted == predicted.count(most) / 200
    assert last.expected == data.validation_set.labels.tolist().count(most) / 200


def test_a_table_of_raised_checks(capsys):
    checks = TrainingChecks()
    checks.first["single_class"] = (4, "all images are sevens")
    report.show_checks(checks.results(), "checks of this training")
    text = " ".join(capsys.readouterr().out.split())
    assert "nearly all images are predicted as one class" in text
    assert "epoch 4: all images are sevens" in text
    assert "1 triggered, 0 passed, 3 not evaluated" in text
