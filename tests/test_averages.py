"""Weight averages against slow ones, of the weights after each step or epoch."""

from __future__ import annotations

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from reference import quiet_trainer
from torch import nn

from nsr.app.build import build_callbacks
from nsr.attacks import GradientAttack
from nsr.callbacks import WeightAverages
from nsr.callbacks.checkpoints import Checkpoints
from nsr.errors import InputError
from nsr.layers import find_layers
from nsr.training.module import RobustClassifier
from tests.conftest import TINY

EPOCHS, BATCHES, DECAYS = 4, 3, (0.3, 0.9)


class Notes(pl.Callback):
    """Keeps the network after each step, in each validation, and the epochs' results."""

    def __init__(self):
        self.steps, self.validated, self.results, self.chosen = [], [], [], []

    def on_train_batch_end(self, trainer, pl_module, *arguments):
        self.steps.append(state(pl_module.net))

    def on_validation_batch_start(self, trainer, pl_module, *arguments):
        self.validated.append(state(pl_module.net))

    def on_validation_end(self, trainer, pl_module):
        self.results.append(pl_module.result.validation)
        self.chosen += [each.chosen for each in trainer.callbacks if isinstance(each, WeightAverages)]
        assert_equal(state(pl_module.net), self.steps[-1] if self.steps else state(pl_module.net))


def state(net):
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def assert_equal(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **(tolerance or {"rtol": 0, "atol": 0}))


def module_of():
    torch.manual_seed(3)
    net = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 3)),
    )
    attack = GradientAttack(epsilon=0.05, steps=1, random_start=False)
    optimizer = partial(torch.optim.SGD, lr=0.4)
    layers = find_layers(net, torch.zeros(2, 1, 6, 6))
    return RobustClassifier(net, layers=layers, classes=3, validation_attack=attack, optimizer=optimizer)


def batches(number=BATCHES, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [(torch.rand(16, 1, 6, 6, generator=draw), torch.arange(16) % 3) for _ in range(number)]


def run(*callbacks, epochs=EPOCHS, resumed=None, **settings):
    module, notes = module_of(), Notes()
    trainer = quiet_trainer(
        max_epochs=epochs, callbacks=[*callbacks, notes], num_sanity_val_steps=-1, limit_val_batches=1.0, **settings
    )
    loaders = [torch.utils.data.DataLoader(each, batch_size=None) for each in (batches(), batches(1, seed=1))]
    trainer.fit(module, *loaders, ckpt_path=resumed, weights_only=True)
    return trainer, notes


def slow_average(trajectory, weights):
    """The weighted sum of states; counters are those of the last."""
    sums = {
        name: sum(w * each[name].double() for w, each in zip(weights, trajectory, strict=True))
        for name in trajectory[0]
    }
    return {
        name: value.to(trajectory[-1][name].dtype) if trajectory[-1][name].is_floating_point() else trajectory[-1][name]
        for name, value in sums.items()
    }


def slow_ema(steps, decay):
    weights = [(1 - decay) * decay ** (len(steps) - 1 - t) for t in range(len(steps))]
    weights[0] = decay ** (len(steps) - 1)  # it begins with the weights after the first step
    return slow_average(steps, weights)


def slow_accuracies(weights):
    module = module_of()
    module.net.load_state_dict(weights)
    net = module.net.eval()
    ((images, labels),) = batches(1, seed=1)
    adversarial = module.validation_attack(net, images, labels)
    return [float((net(inputs).argmax(1) == labels).double().mean()) for inputs in (images, adversarial)]


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    averages = WeightAverages(decays=list(DECAYS), swa_start=2)
    trainer, notes = run(Checkpoints(folder), averages)
    return folder, trainer, notes, averages


def expected_averages(steps, epoch):
    """{name: average} after an epoch, from the weights after each step."""
    until = steps[: epoch * BATCHES]
    ends = steps[BATCHES - 1 : len(until) : BATCHES][2:]
    found = {f"ema_{decay}": slow_ema(until, decay) for decay in DECAYS}
    return {**found, "swa": slow_average(ends, [1 / len(ends)] * len(ends)) if ends else until[-1]}


def test_each_average_is_the_slow_one_and_the_best_is_validated_and_kept(several):
    folder, trainer, notes, _ = several
    best = (-1.0, 0, "")
    for epoch in range(1, EPOCHS + 1):
        expected = expected_averages(notes.steps, epoch)
        accuracies = {name: slow_accuracies(average) for name, average in expected.items()}
        for name, pair in accuracies.items():
            row = [notes.results[epoch][f"validation/{name}_{kind}_accuracy"] for kind in ("clean", "robust")]
            assert row == pytest.approx(pair), (epoch, name)
        chosen = max(accuracies, key=lambda name: accuracies[name][1])
        assert notes.chosen[epoch] == chosen
        assert_equal(notes.validated[epoch], expected[chosen], rtol=1e-5, atol=1e-6)
        assert notes.results[epoch]["validation/robust_accuracy"] == pytest.approx(accuracies[chosen][1])
        best = max(best, (accuracies[chosen][1], -epoch, chosen))
    assert len(set(notes.chosen[1:])) > 1  # the choice is not always the same
    saved = torch.load(folder / "best.ckpt", weights_only=True)
    assert saved["weight_averages"]["chosen"] == best[2]
    kept = {name.removeprefix("net."): value for name, value in saved["state_dict"].items() if name.startswith("net.")}
    assert_equal(kept, expected_averages(notes.steps, -best[1])[best[2]], rtol=1e-5, atol=1e-6)
    last = torch.load(folder / "last.ckpt", weights_only=True)
    assert_equal(state(trainer.lightning_module), dict(last["state_dict"]))  # the module ends with the average
    raw = {name.removeprefix("net."): value for name, value in last["current_model_state"].items()}
    assert_equal({name: raw[name] for name in notes.steps[-1]}, notes.steps[-1])


def test_before_training_every_average_is_the_network(several):
    _, _, notes, _ = several
    row = notes.results[0]
    for name in (*(f"ema_{decay}" for decay in DECAYS), "swa"):
        assert row[f"validation/{name}_robust_accuracy"] == row["validation/robust_accuracy"]


def test_averages_leave_the_weights_of_training_as_they_are(several):
    _, notes = run()
    for mine, theirs in zip(several[2].steps, notes.steps, strict=True):
        assert_equal(mine, theirs)


def test_one_average_alone_is_validated_once_without_columns_of_its_own():
    _, notes = run(WeightAverages(swa_start=0.5))
    assert len(notes.validated) == EPOCHS + 1
    assert not any("swa" in name for name in notes.results[-1])
    ends = notes.steps[BATCHES - 1 :: BATCHES]
    assert_equal(notes.validated[1], ends[0])  # before it starts, the weights themselves
    assert_equal(notes.validated[4], slow_average(ends[2:], [0.5, 0.5]), rtol=1e-5, atol=1e-6)


def test_accumulated_gradients_count_as_one_step():
    _, notes = run(WeightAverages(decays=[0.5]), epochs=1, accumulate_grad_batches=2)
    assert_equal(notes.validated[-1], slow_ema(notes.steps[1:], 0.5), rtol=1e-5, atol=1e-6)


def test_a_resumed_run_has_the_same_averages(several, tmp_path):
    folder, _, notes, averages = several
    run(Checkpoints(tmp_path), WeightAverages(decays=list(DECAYS), swa_start=2), epochs=3)
    again = WeightAverages(decays=list(DECAYS), swa_start=2)
    _, resumed = run(Checkpoints(tmp_path), again, resumed=tmp_path / "last.ckpt")
    assert resumed.results[-1] == notes.results[-1]
    for name, average in averages.averages.items():
        assert_equal(again.averages[name], average)
    first, second = (torch.load(each / "best.ckpt", weights_only=True)["state_dict"] for each in (folder, tmp_path))
    assert_equal(dict(first), dict(second))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"decays is \(\); it must be a list such as"),
        ({"decays": 0.9}, "decays is 0.9; it must be a list"),
        ({"decays": [1.1]}, "decays entry is 1.1; it must be a number at least 0 and at most 1"),
        ({"decays": [0.9, 0.9]}, "it must be different numbers"),
    ],
)
def test_averages_out_of_range(settings, message):
    with pytest.raises(InputError, match=message):
        WeightAverages(**settings)


def test_the_accuracies_of_each_average_can_be_monitored(several):
    _, trainer, notes, averages = several
    names = ["ema_0.3", "ema_0.9", "swa"]
    expected = [f"validation/{name}_{kind}_accuracy" for name in names for kind in ("clean", "robust")]
    assert averages.names == expected
    assert set(expected) <= set(notes.results[-1]) & set(trainer.callback_metrics)
    for decays, monitor in (([0.3, 0.9], expected[3]), ([0.9], expected[3]), ([0.3, 0.9], expected[5])):
        callbacks = {
            "averages": {"_target_": "nsr.callbacks.WeightAverages", "decays": decays},
            "stop": {"_target_": "pytorch_lightning.callbacks.EarlyStopping", "monitor": monitor, "mode": "max"},
        }
        settings = {"callbacks": callbacks, "objective": {}, "trainer": {"max_epochs": 1}}
        if len(decays) > 1 and "swa" not in monitor:
            assert build_callbacks(settings, module_of())["stop"].monitor == monitor
        else:  # a single one has no columns of its own
            with pytest.raises(InputError, match=r"callbacks\.stop\.monitor"):
                build_callbacks(settings, module_of())


@pytest.mark.slow
def test_an_average_that_never_starts_and_two_callbacks_of_averages(refused):
    assert "not shorter than the run of 1 epochs" in refused(
        "train", *TINY, "callbacks=[swa]", "callbacks.swa.swa_start=1"
    )
    text = refused("train", *TINY, "callbacks=[ema,averages]")
    assert "callbacks has ema and averages, which would each replace the weights; keep one" in text
