"""Adversarial weight perturbation against the published procedure: a copied network, one step of SGD up the loss."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from reference import (
    Raising,
    assert_bit_equal,
    fit,
    quiet_trainer,
    residual_net,
    slow_cross_entropy,
    slow_kl_divergence,
    slow_stabilizer_term,
)
from torch import nn

from nsr.attacks import KeptPerturbation
from nsr.callbacks import AdversarialWeightPerturbation
from nsr.errors import InputError
from nsr.evaluation.suite import AttackSuite
from nsr.layers import find_layers
from nsr.objectives import AdversarialTraining, Free, Trades, required_views
from nsr.stabilizer import SensitivityStabilizer
from nsr.training.free import FreeClassifier
from nsr.training.module import RobustClassifier

GAMMA, RATE, DECAY = 0.05, 0.1, 0.02
STABILIZED = ("net.relu", "net.relu#2", "net.tanh")
MOVED = {"net.conv1.weight", "net.hidden.weight", "net.fc.weight"}


class Shifted(nn.Module):
    """BatchNorm, a matrix that is no 'weight', and a weight that is not trained."""

    def __init__(self):
        super().__init__()
        self.net = residual_net()
        self.net.conv2.weight.requires_grad_(False)
        self.shift = nn.Parameter(torch.full((6, 6), 0.1))

    def forward(self, images):
        return self.net(images + self.shift)


class Nudge:
    """An attack without passes; it notes the weight that it met."""

    def __init__(self):
        self.met = []

    def __call__(self, net, images, labels):
        self.met.append(next(net.parameters()).detach().clone())
        pattern = torch.linspace(-1, 1, images[0].numel(), dtype=images.dtype).view(images[0].shape)
        return (images + 0.1 * pattern).clamp(0, 1)


def pgd_by_hand(logits, labels):
    return slow_cross_entropy(logits["adversarial"], labels)


def half_by_hand(logits, labels):
    return (slow_cross_entropy(logits["adversarial"], labels) + slow_cross_entropy(logits["clean"], labels)) / 2


def trades_by_hand(logits, labels):
    divergence = sum(slow_kl_divergence(logits["clean"], logits["adversarial"])) / len(labels)
    return slow_cross_entropy(logits["clean"], labels) + 6 * divergence


OBJECTIVES = {
    "pgd": (AdversarialTraining, pgd_by_hand),
    "half": (lambda: AdversarialTraining(clean_weight=0.5), half_by_hand),
    "trades": (Trades, trades_by_hand),
}


def settings_of(net, *, layers=STABILIZED, **settings):
    return {
        "layers": find_layers(net, torch.zeros(2, 1, 6, 6), list(layers)) if layers else [],
        "classes": 3,
        "suite": AttackSuite({}),
        "optimizer": partial(torch.optim.SGD, lr=RATE, weight_decay=DECAY),
        **settings,
    }


def module_of(objective=None, *, net=None, attached=True, **settings) -> RobustClassifier:
    net = Shifted() if net is None else net
    objective = AdversarialTraining() if objective is None else objective
    settings = settings_of(net, objective=objective, train_attack=Nudge(), **settings)
    module = RobustClassifier(net, **settings).double().train()
    if attached:
        module.trainer = quiet_trainer()
    return module


def batch(size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(size, 1, 6, 6, generator=generator, dtype=torch.float64)
    return images, torch.arange(size) % 3


def views_of(images):
    return {"clean": images, "adversarial": Nudge()(nn.Linear(1, 1), images, None)}


def moved_by_hand(net, images, labels, *, views, loss_of, gamma=GAMMA):
    """As in the authors' code: a proxy takes a step of SGD on -L; the difference, at the weight's size, is added."""
    proxy, moved = copy.deepcopy(net).train(), copy.deepcopy(net).train()
    optimizer = torch.optim.SGD(proxy.parameters(), lr=0.01)
    optimizer.zero_grad()
    (-loss_of({view: proxy(views_of(images)[view]) for view in views}, labels)).backward()
    optimizer.step()
    stepped = dict(proxy.named_parameters())
    with torch.no_grad():
        for name, weight in moved.named_parameters():
            if weight.ndim > 1 and "weight" in name:
                difference = stepped[name] - weight
                weight += gamma * weight.norm() / (difference.norm() + 1e-20) * difference
    return moved


def gradients_by_hand(net, images, labels, *, views, loss_of):
    """The loss and {parameter: gradient} in training mode."""
    net.zero_grad()
    loss = loss_of({view: net(views_of(images)[view]) for view in views}, labels)
    loss.backward()
    return loss.detach(), {name: value.grad for name, value in net.named_parameters() if value.grad is not None}


def state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def assert_close(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-9, atol=1e-9, msg=lambda t, n=name: f"{n}: {t}")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_training_step_is_the_published_procedure(name):
    make, loss_of = OBJECTIVES[name]
    objective = make()
    views = required_views(objective)
    module, awp = module_of(objective), AdversarialWeightPerturbation(gamma=GAMMA)
    net, (images, labels) = module.net, batch()
    before = state(net)
    moved = moved_by_hand(net, images, labels, views=views, loss_of=loss_of)
    expected, gradients = gradients_by_hand(moved, images, labels, views=views, loss_of=loss_of)

    awp.setup(module.trainer, module, "fit")
    awp.perturb(views_of(images), labels)
    assert_close(dict(net.named_parameters()), dict(moved.named_parameters()))
    changed = {key for key, value in net.named_parameters() if not torch.equal(value, before[key])}
    assert changed == MOVED
    for weight in changed:  # of the announced length
        length = (net.get_parameter(weight) - before[weight]).norm()
        torch.testing.assert_close(length, GAMMA * before[weight].norm(), rtol=1e-9, atol=0)
    assert all(value.grad is None for value in net.parameters())  # the ascent's gradient is stored nowhere
    assert_bit_equal({key: before[key] for key, _ in net.named_buffers()}, dict(net.named_buffers()))
    awp.restore()
    assert_bit_equal(before, state(net))

    loss = module.training_step((images, labels), 0)
    loss.backward()
    awp.on_after_backward(module.trainer, module)
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-9, atol=0)
    assert_close({key: value.grad for key, value in net.named_parameters() if value.grad is not None}, gradients)
    assert_bit_equal({key: before[key] for key, _ in net.named_parameters()}, dict(net.named_parameters()))
    assert_close(dict(net.named_buffers()), dict(moved.named_buffers()))
    assert int(net.net.bn1.num_batches_tracked) == len(views)
    assert [torch.equal(met, next(net.parameters())) for met in module.train_attack.met] == [True]
    _, unmoved = gradients_by_hand(copy.deepcopy(net), images, labels, views=views, loss_of=loss_of)
    assert any((gradients[key] - unmoved[key]).norm() > 0.01 * unmoved[key].norm() for key in MOVED)


def test_the_gradient_at_the_perturbed_weights_is_clipped_and_the_step_taken_without_them():
    module, (images, labels), most = module_of(attached=False), batch(), 0.02
    net = module.net
    before = state(net)
    moved = moved_by_hand(net, images, labels, views=("adversarial",), loss_of=pgd_by_hand)
    _, gradients = gradients_by_hand(moved, images, labels, views=("adversarial",), loss_of=pgd_by_hand)
    length = sum(value.square().sum() for value in gradients.values()).sqrt()
    assert length > 2 * most
    fit(module, [(images, labels)], callbacks=[AdversarialWeightPerturbation(gamma=GAMMA)], gradient_clip_val=most)
    expected = {key: before[key] - RATE * (most / length * gradients[key] + DECAY * before[key]) for key in gradients}
    for key, value in expected.items():
        torch.testing.assert_close(net.get_parameter(key).detach(), value, rtol=1e-5, atol=1e-7)


def test_a_stabilizing_term_is_measured_there_and_not_ascended():
    weight = 30.0
    module = module_of(stabilizer=SensitivityStabilizer(weight=weight, top=2))
    net, (images, labels) = module.net, batch()
    awp = AdversarialWeightPerturbation(gamma=GAMMA)
    moved = moved_by_hand(net, images, labels, views=("adversarial",), loss_of=pgd_by_hand)
    values = {view: moved.net.values(inputs + moved.shift) for view, inputs in views_of(images).items()}
    features = {view: {layer: of[layer.removeprefix("net.")] for layer in STABILIZED} for view, of in values.items()}
    term = slow_stabilizer_term(*features.values(), count=dict.fromkeys(STABILIZED, 2), weight=weight)
    expected = pgd_by_hand({"adversarial": values["adversarial"]["fc"]}, labels) + term
    assert term > 0.1
    wanted = torch.autograd.grad(expected, [moved.get_parameter(name) for name in sorted(MOVED)])
    awp.setup(module.trainer, module, "fit")
    loss = module.training_step((images, labels), 0)
    assert_close(dict(net.named_parameters()), dict(moved.named_parameters()))
    loss.backward()
    awp.restore()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    for name, gradient in zip(sorted(MOVED), wanted, strict=True):
        torch.testing.assert_close(net.get_parameter(name).grad, gradient, rtol=1e-9, atol=1e-12)


def perturbed(module, images, labels):
    """The module after one perturbation."""
    awp = AdversarialWeightPerturbation(gamma=GAMMA)
    awp.setup(None, module, "fit")
    awp.perturb(views_of(images), labels)
    return state(module.net)


def test_no_gradient_moves_no_weight():
    module = module_of()
    with torch.no_grad():
        module.net.net.fc.weight.zero_()  # nothing reaches the layers before it, and its own length is 0
    before = state(module.net)
    assert_bit_equal(before, perturbed(module, *batch()))
    assert_bit_equal(perturbed(module_of(), *batch()), perturbed(module_of(attached=False), *batch()))  # no trainer


class Confident(nn.Module):
    """Right about every image of `batch`, by `lead`."""

    def __init__(self, lead):
        super().__init__()
        self.lead, self.fc = lead, nn.Linear(36, 3)

    def forward(self, images):
        return self.lead * torch.eye(3)[torch.arange(len(images)) % 3] + self.fc(images.flatten(1))


@pytest.mark.parametrize("lead", [30.0, 60.0, 80.0, 120.0])
def test_a_vanishing_gradient_moves_no_weight_too_far(lead):
    """The squares of a confident network's gradients underflow in float32."""
    net = Confident(lead)
    before = net.fc.weight.detach().clone()
    settings = settings_of(net, layers=(), objective=AdversarialTraining(), train_attack=Nudge())
    module = RobustClassifier(net, **settings).train()
    module.trainer = quiet_trainer()
    images, labels = batch()
    perturbed(module, images.float(), labels)
    length = (net.fc.weight.detach() - before).norm() / before.norm()
    assert length <= GAMMA * (1 + 1e-4)
    assert lead > 30 or length >= GAMMA * (1 - 1e-3)


class Unused(Shifted):
    """A part of it, such as a head of its own, takes no part in the loss."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 3)


def test_a_weight_that_the_loss_does_not_use_stays():
    module, without = module_of(net=Unused(), attached=False), module_of(attached=False)
    for one in (module, without):
        fit(one, [batch()], callbacks=[AdversarialWeightPerturbation(gamma=GAMMA)])
    trained = state(module.net)
    assert_bit_equal({name: trained[name] for name in state(without.net)}, state(without.net))


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("name", ["pgd", "trades"])
def test_a_run_descends_from_the_unmoved_weights_which_decay(name, accumulated):
    """w <- w - lr * (mean of grad L(w + v) + decay * w), a perturbation v for each batch."""
    make, loss_of = OBJECTIVES[name]
    objective = make()
    module = module_of(objective, attached=False)
    net = copy.deepcopy(module.net)
    batches = [batch(6, 0), batch(5, 1), batch(6, 2), batch(6, 3)]
    awp = AdversarialWeightPerturbation(gamma=GAMMA)
    fit(module, batches, callbacks=[awp], accumulate_grad_batches=accumulated)
    views = required_views(objective)
    collected = []
    for images, labels in batches:
        moved = moved_by_hand(net, images, labels, views=views, loss_of=loss_of)
        collected.append(gradients_by_hand(moved, images, labels, views=views, loss_of=loss_of)[1])
        for buffer, value in zip(net.buffers(), moved.buffers(), strict=True):
            buffer.copy_(value)
        if len(collected) == accumulated:
            with torch.no_grad():
                for parameter, weight in net.named_parameters():
                    if weight.requires_grad:
                        gradient = sum(gradients[parameter] for gradients in collected) / accumulated
                        weight.copy_(weight - RATE * (gradient + DECAY * weight))
            collected = []
    assert_close(state(module.net), state(net))
    assert int(module.net.net.bn1.num_batches_tracked) == len(batches) * len(views)


def test_no_size_is_no_perturbation_and_a_later_run_without_it_is_without():
    states = []
    for callbacks in ([], [AdversarialWeightPerturbation(gamma=0)], [AdversarialWeightPerturbation(gamma=GAMMA)]):
        module = module_of(attached=False)
        fit(module, [batch(6, 0), batch(5, 1)], callbacks=callbacks)
        assert module.before_passes == []
        states.append(state(module.net))
    assert_bit_equal(states[0], states[1])
    assert not torch.equal(states[0]["net.fc.weight"], states[2]["net.fc.weight"])


class Watch(pl.Callback):
    """Of each pass, by epoch: whether it is made with the weights that the step began with."""

    def __init__(self):
        self.passes = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        net, passes = pl_module.net, self.passes.setdefault(trainer.current_epoch, [])
        begun = net.net.fc.weight.detach().clone()
        self.handle = net.register_forward_pre_hook(lambda net, _: passes.append(torch.equal(net.net.fc.weight, begun)))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.handle.remove()


def test_epochs_of_warmup_are_without():
    watch = Watch()
    module = module_of(attached=False)
    fit(module, [batch(6, 0)], epochs=3, callbacks=[AdversarialWeightPerturbation(gamma=GAMMA, warmup=2), watch])
    assert watch.passes == {0: [True], 1: [True], 2: [True, False]}  # no pass more, then one to ascend
    plain, warm = (module_of(attached=False) for _ in range(2))
    fit(plain, [batch(6, 0)], epochs=2)
    fit(warm, [batch(6, 0)], epochs=2, callbacks=[AdversarialWeightPerturbation(gamma=GAMMA, warmup=2)])
    assert_bit_equal(state(plain.net), state(warm.net))


def test_a_step_that_breaks_leaves_the_weights_unmoved():
    net = Shifted()
    met = []
    broken = Raising(net, at=2)  # the pass of the ascent goes through, that of the loss does not
    broken.register_forward_pre_hook(lambda broken, inputs: met.append(net.net.fc.weight.detach().clone()))
    settings = settings_of(net, layers=(), objective=AdversarialTraining(), train_attack=Nudge())
    module = RobustClassifier(broken, **settings).double()
    before = {name: value.clone() for name, value in net.named_parameters()}
    with pytest.raises(RuntimeError, match="the network broke"):
        fit(module, [batch()], callbacks=[AdversarialWeightPerturbation(gamma=GAMMA)])
    assert [torch.equal(weight, before["net.fc.weight"]) for weight in met] == [True, False]
    assert_bit_equal(before, dict(net.named_parameters()))


def test_free_training_is_refused():
    net = Shifted()
    settings = settings_of(net, objective=Free(), train_attack=KeptPerturbation(epsilon=0.1))
    module = FreeClassifier(net, **settings).double()
    before = state(net)
    with pytest.raises(InputError, match="awp.*objective=free"):
        fit(module, [batch()], callbacks=[AdversarialWeightPerturbation()])
    assert_bit_equal(before, state(net))


def test_it_takes_part_in_training_alone():
    module = module_of()
    AdversarialWeightPerturbation().setup(module.trainer, module, "test")
    assert module.before_passes == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [*(("gamma", value) for value in (-0.1, float("nan"), True, "0.1")), *(("warmup", value) for value in (-1, 0.5))],
)
def test_a_wrong_setting_is_refused(setting, value):
    with pytest.raises(InputError, match=rf"callbacks\.awp\.{setting} is "):
        AdversarialWeightPerturbation(**{setting: value})
