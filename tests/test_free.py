"""Free adversarial training against algorithm 1 of Shafahi et al. 2019, written out; its place in a run."""

from __future__ import annotations

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from reference import assert_bit_equal, counted_passes, fit, slow_cross_entropy, slow_stabilizer_term
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

from nsr.attacks import GradientAttack, KeptPerturbation
from nsr.errors import InputError
from nsr.evaluation.suite import AttackSuite
from nsr.layers import find_layers
from nsr.objectives import AdversarialTraining, Free
from nsr.stabilizer import SensitivityStabilizer
from nsr.training.free import FreeClassifier, classifier_type, n_replays
from nsr.training.module import RobustClassifier
from nsr.training.schedules import WarmUpPiecewise

CLASSES, EPSILON, RATE = 3, 0.1, 0.2


def network(dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(144, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, CLASSES)),
        )


class RecordingSGD(torch.optim.SGD):
    """Keeps the learning rate of each of its steps."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr)
        self.rates = []

    def step(self, closure=None):
        self.rates.append(self.param_groups[0]["lr"])
        return super().step(closure)


def settings_of(net, **settings):
    return {
        "layers": find_layers(net, torch.zeros(2, 1, 6, 6), ["2", "5"]),
        "classes": CLASSES,
        "suite": AttackSuite({}),
        "optimizer": partial(RecordingSGD, lr=RATE),
        **settings,
    }


def free(*, replays=1, kept=None, dropout=0.0, dtype=torch.float64, label_smoothing=0.0, **settings) -> FreeClassifier:
    net = network(dropout)
    objective = Free(replays=replays, label_smoothing=label_smoothing)
    kept = KeptPerturbation(epsilon=EPSILON, step_size=0.04) if kept is None else kept
    return FreeClassifier(net, **settings_of(net, objective=objective, train_attack=kept, **settings)).to(dtype)


def batches(*sizes: int, dtype=torch.float64):
    """Images that reach both ends of the pixel range, so that x + d is clipped somewhere."""
    generator = torch.Generator().manual_seed(1)
    answer = []
    for size in sizes:
        images = torch.rand(size, 1, 6, 6, generator=generator, dtype=torch.float64)
        labels = torch.randint(CLASSES, (size,), generator=generator)
        answer.append(((1.4 * images - 0.2).clamp(0, 1).to(dtype), labels))
    return answer


def moved(d, gradient, *, norm, step_size):
    """d <- clip(d + step * sign(g), -e, e), and in L2 along g / ||g||, back onto the ball image by image."""
    if norm == "linf":
        return (d + step_size * torch.sign(gradient)).clamp(-EPSILON, EPSILON)
    d = torch.stack([one + step_size * g / g.square().sum().sqrt() for one, g in zip(d, gradient, strict=True)])
    lengths = [float(one.square().sum().sqrt()) for one in d]
    return torch.stack([one * min(1.0, EPSILON / length) for one, length in zip(d, lengths, strict=True)])


def algorithm_1(net, batches, *, replays, step_size, norm="linf", loss_of=None):
    """The network's and the perturbation's end; d has a place for each image of the largest batch, zero at first."""
    net = copy.deepcopy(net).double().train()
    parameters = list(net.parameters())
    d = torch.zeros(max(len(images) for images, _ in batches), 1, 6, 6, dtype=torch.float64)
    for images, labels in batches:
        here = slice(0, len(images))
        for _ in range(replays):
            adversarial = (images + d[here]).clamp(0, 1).requires_grad_()
            if loss_of is None:
                loss = slow_cross_entropy(net(adversarial), labels)
            else:
                loss = loss_of(net, images, adversarial, labels)
            *of_weights, of_images = torch.autograd.grad(loss, [*parameters, adversarial])
            d[here] = moved(d[here], of_images, norm=norm, step_size=step_size)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, of_weights, strict=True):
                    parameter -= RATE * gradient
    return net, d


def assert_same_end(module, net, d, *, tolerance=1e-12):
    for (name, mine), theirs in zip(module.net.named_parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(module.kept.perturbation, d, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("norm", "step_size"), [("linf", None), ("linf", 0.04), ("l2", 0.04)])
@pytest.mark.parametrize(("replays", "sizes"), [(1, (5, 5)), (3, (4, 6)), (3, (6, 4, 6))])
def test_steps_are_algorithm_1(replays, sizes, norm, step_size):
    module = free(replays=replays, kept=KeptPerturbation(epsilon=EPSILON, step_size=step_size, norm=norm))
    start = copy.deepcopy(module.net)
    fit(module, batches(*sizes))
    net, d = algorithm_1(start, batches(*sizes), replays=replays, step_size=step_size or EPSILON, norm=norm)
    assert_same_end(module, net, d)
    assert d.ne(0).any()
    if replays == 3:  # the clips of the images and of the perturbation matter
        moved_images = [images + d[: len(images)] for images, _ in batches(*sizes)]
        assert any(((images < 0) | (images > 1)).any() for images in moved_images)
    assert d.shape == (max(sizes), 1, 6, 6)
    for buffer, wanted in zip(module.net.buffers(), net.buffers(), strict=True):  # one pass a replay feeds BatchNorm
        torch.testing.assert_close(buffer, wanted, rtol=0, atol=1e-12)
    assert int(module.net[1].num_batches_tracked) == replays * len(sizes)


@pytest.mark.parametrize("through_clean", [True, False])
def test_the_perturbation_ascends_the_stabilizing_term_too(through_clean):
    weight = 20.0
    stabilizer = SensitivityStabilizer(weight=weight, top=2, gradient_through_clean=through_clean)
    module = free(replays=2, stabilizer=stabilizer)
    start = copy.deepcopy(module.net)
    fit(module, batches(5))

    def features(net, images):
        norm = nn.functional.batch_norm(net[0](images), None, None, net[1].weight, net[1].bias, True)
        first = norm.clamp(min=0)
        second = net[4](first.flatten(1)).tanh()
        return {"2": first, "5": second}, net[7](second)

    def loss_of(net, clean, adversarial, labels):
        still, _ = features(net, clean)
        if not through_clean:
            still = {layer: values.detach() for layer, values in still.items()}
        shifted, logits = features(net, adversarial)
        term = slow_stabilizer_term(still, shifted, count={"2": 2, "5": 2}, weight=weight)
        return slow_cross_entropy(logits, labels) + term

    net, d = algorithm_1(start, batches(5), replays=2, step_size=0.04, loss_of=loss_of)
    assert_same_end(module, net, d)
    _, without = algorithm_1(start, batches(5), replays=2, step_size=0.04)
    assert not torch.equal(d, without)


@pytest.mark.parametrize("replays", [1, 4])
def test_one_forward_and_one_backward_pass_a_replay(replays, monkeypatch):
    module = free(replays=replays)
    with counted_passes(module.net, monkeypatch) as counted:
        fit(module, batches(4, 6))
    assert counted == {"train, gradient": 2 * replays, "backward": 2 * replays}
    assert len(module.trainer.optimizers[0].rates) == 2 * replays
    assert module.global_step == 2 * replays


def schedulers(interval):
    if interval is None:
        return {}
    if interval == "epoch":
        return {"scheduler": partial(StepLR, step_size=1, gamma=0.5), "scheduler_interval": "epoch"}
    if interval == "epochs of steps":  # lengths are whole epochs, each replay is a step
        warmup = partial(WarmUpPiecewise, warmup=1, milestones=[1], gamma=0.5)
        return {"scheduler": warmup, "scheduler_interval": "step"}
    return {"scheduler": partial(OneCycleLR, max_lr=0.4, cycle_momentum=False), "scheduler_interval": "step"}


def everything(module):
    state = {name: value.clone() for name, value in module.net.state_dict().items()}
    return {**state, "perturbation": module.kept.perturbation.clone()}


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("interval", [None, "epoch"])
@pytest.mark.parametrize("by", ["hand", "callback"])
def test_the_perturbation_survives_a_checkpoint(by, interval, tmp_path):
    def made():
        return free(replays=2, dropout=0.4, **schedulers(interval))

    def run(module, name, **settings):
        if by == "callback":
            keep = ModelCheckpoint(dirpath=tmp_path / name, filename="end")
            settings |= {"callbacks": [keep], "enable_checkpointing": True}
        return fit(module, batches(5, 4), **settings)

    uninterrupted, first, second = made(), made(), made()
    run(uninterrupted, "uninterrupted", epochs=2)
    trainer = run(first, "first")
    if by == "hand":
        trainer.save_checkpoint(tmp_path / "first" / "end.ckpt")
    assert second.kept.perturbation is None
    trainer = run(second, "second", epochs=2, resumed=tmp_path / "first" / "end.ckpt")
    assert trainer.current_epoch == 2
    assert_bit_equal(everything(uninterrupted), everything(second))
    assert not torch.equal(first.kept.perturbation, second.kept.perturbation)  # it moved on
    assert uninterrupted.kept.perturbation.shape == (5, 1, 6, 6)
    rates = [module.trainer.optimizers[0].rates for module in (uninterrupted, first, second)]
    assert rates[0] == rates[1] + rates[2]
    assert len(rates[2]) == 4


def test_a_checkpoint_of_other_processes_starts_a_new_perturbation(tmp_path):
    """Its places belong to the batches of as many processes as there were."""
    first, second = free(), free()
    fit(first, batches(5)).save_checkpoint(tmp_path / "one.ckpt")
    checkpoint = torch.load(tmp_path / "one.ckpt", weights_only=False)
    assert checkpoint["perturbations"].shape == (1, 5, 1, 6, 6)
    torch.save({**checkpoint, "perturbations": torch.ones(2, 5, 1, 6, 6)}, tmp_path / "two.ckpt")
    seen = []
    second.net.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[0].detach().clone()))
    fit(second, batches(5), epochs=2, resumed=tmp_path / "two.ckpt")
    assert torch.equal(seen[0], batches(5)[0][0])


def test_learning_rates_are_those_of_automatic_optimization():
    replays, sizes, epochs = 3, (4, 4), 2
    net = network()
    rates = {}
    for interval in (None, "epoch", "step", "epochs of steps"):
        module = free(replays=replays, **schedulers(interval))
        fit(module, batches(*sizes), epochs=epochs)
        rates[interval] = module.trainer.optimizers[0].rates
        # each batch as often as it is replayed, so that the epochs have as many steps
        plain = RobustClassifier(
            copy.deepcopy(net),
            **settings_of(net, objective=AdversarialTraining(), train_attack=lambda net, images, labels: images),
            **schedulers(interval),
        ).double()
        fit(plain, [batch for batch in batches(*sizes) for _ in range(replays)], epochs=epochs)
        assert rates[interval] == plain.trainer.optimizers[0].rates
        assert len(rates[interval]) == replays * len(sizes) * epochs
    assert rates[None] == [RATE] * 12
    assert rates["epoch"] == [RATE] * 6 + [RATE / 2] * 6
    assert len(set(rates["step"])) > 6  # up and down again
    assert rates["step"][-1] < rates["step"][0] < max(rates["step"])
    warmup = [RATE * (step + 1) / 6 for step in range(6)]
    assert rates["epochs of steps"] == pytest.approx(warmup + [RATE / 2] * 6)


def test_a_run_of_so_many_steps_knows_its_steps():
    module = free(replays=3, **schedulers("step"))
    fit(module, batches(4, 4), epochs=4, max_steps=6)  # Lightning counts the optimizer's steps: two batches
    assert len(module.trainer.optimizers[0].rates) == 6
    assert module.optimizer_steps == 6


@pytest.mark.parametrize(("max_steps", "expected"), [(-1, 3 * 2 * 4 - 12), (15, 15 - 12)])
def test_an_extended_run_has_the_steps_that_are_left(max_steps, expected):
    module = free(replays=3, **schedulers("step"))
    module.steps_before = 3 * 2 * 2  # two epochs of two batches
    module.trainer = SimpleNamespace(estimated_stepping_batches=2 * 4, max_steps=max_steps)
    assert module.optimizer_steps == expected


def test_a_schedule_follows_the_validated_accuracy():
    plateau = partial(ReduceLROnPlateau, mode="max", patience=0, threshold=10.0)  # which no later epoch reaches
    module = free(scheduler=plateau)
    fit(module, batches(4), epochs=3, limit_val_batches=1)
    assert module.trainer.optimizers[0].rates == pytest.approx([RATE, RATE, RATE / 10])
    with pytest.raises(InputError, match="no validation/robust_accuracy to follow"):
        fit(free(scheduler=plateau), batches(4))


@pytest.mark.parametrize(
    ("objective", "attack", "match"),
    [
        (AdversarialTraining(), KeptPerturbation(epsilon=EPSILON), "objective=free and train_attack=kept belong toget"),
        (Free(), GradientAttack(epsilon=EPSILON, steps=1), "objective=free and train_attack=kept belong together"),
        (Free(), None, "train_attack is None"),
        (AdversarialTraining(), GradientAttack(epsilon=EPSILON, steps=1), "FreeClassifier needs objective=free"),
    ],
    ids=["objective", "attack", "no_attack", "both"],
)
def test_another_attack_or_objective_is_refused(objective, attack, match):
    net = network()
    with pytest.raises(InputError, match=match):
        FreeClassifier(net, **settings_of(net, objective=objective, train_attack=attack))


@pytest.mark.parametrize("objective", [Free(), AdversarialTraining()], ids=["free", "kept_attack"])
def test_a_class_that_does_not_replay_is_refused(objective):
    """Its perturbation would stay zero, so that it would train on clean images alone."""

    class Own(RobustClassifier):
        pass

    net = network()
    with pytest.raises(InputError, match="Own does not replay batches.* it must be nsr.training.free.FreeClassifier"):
        Own(net, **settings_of(net, objective=objective, train_attack=KeptPerturbation(epsilon=EPSILON)))


def test_which_module_trains_an_objective_and_how_many_epochs_it_saves():
    attack = GradientAttack(epsilon=EPSILON, steps=1)
    assert classifier_type(AdversarialTraining(), attack) is RobustClassifier
    assert classifier_type(Free(), KeptPerturbation(epsilon=EPSILON)) is FreeClassifier
    assert (n_replays(Free(replays=3)), n_replays(AdversarialTraining())) == (3, 1)
