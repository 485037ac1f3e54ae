"""One step: its value, its passes, its traces."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from pytorch_lightning.plugins import MixedPrecision
from reference import assert_bit_equal, counted_passes, fit
from torch import nn
from torch.nn import functional as F

from nsr.attacks import GradientAttack, KeptPerturbation
from nsr.errors import InputError, RunStopped
from nsr.evaluation.suite import AttackSuite
from nsr.layers import find_layers
from nsr.models import Classifier, SmallCNN
from nsr.objectives import AdversarialTraining, Free, LogitPairing, Mart, Natural, Trades, required_views
from nsr.randomness import draw_seed
from nsr.stabilizer import SensitivityStabilizer
from nsr.training.free import FreeClassifier
from nsr.training.module import RobustClassifier, full_precision

CLASSES = 3
OBJECTIVES = dict(natural=Natural, pgd=AdversarialTraining, alp=LogitPairing, trades=Trades, mart=Mart)
OBJECTIVES |= {"half": lambda: AdversarialTraining(clean_weight=0.5), "free": lambda: Free(replays=3)}


def network(*, dropout: bool = False) -> nn.Module:
    torch.manual_seed(0)
    net = SmallCNN(channels=1, classes=CLASSES, image_size=8, width=4)
    if dropout:
        net.relu4 = nn.Sequential(nn.ReLU(), nn.Dropout(0.5))
    return Classifier(net, [0.3], [0.4])


def module_of(objective, *, stabilizer=None, dropout=False, steps=3, **settings) -> RobustClassifier:
    net = network(dropout=dropout)
    attack = GradientAttack(epsilon=0.1, steps=steps)
    if isinstance(objective, Free):
        kind, training_attack = FreeClassifier, KeptPerturbation(epsilon=0.1)
    elif isinstance(objective, Trades):
        kind = RobustClassifier
        training_attack = GradientAttack(epsilon=0.1, steps=steps, loss="kl", random_start="gaussian")
    else:
        kind, training_attack = RobustClassifier, attack
    layers = find_layers(net, torch.zeros(2, 1, 8, 8), root=net.net)
    return kind(
        net,
        layers=layers,
        root=net.net,
        classes=CLASSES,
        objective=objective,
        train_attack=training_attack,
        validation_attack=attack,
        suite=AttackSuite({"pgd": attack}),
        stabilizer=stabilizer,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        **settings,
    )


def batch(size: int = 6):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(size, 1, 8, 8, generator=generator)
    return images, torch.arange(size) % CLASSES


def step(module: RobustClassifier, number: int = 0) -> torch.Tensor:
    """One optimizer step, as the Trainer makes it."""
    module.train()
    optimizer = module.configure_optimizers()
    loss = module.training_step(batch(), number)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def state(module: RobustClassifier) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.net.state_dict().items()}


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_weight_zero_is_bit_equal_to_none(name, dropout):
    plain = module_of(OBJECTIVES[name](), dropout=dropout)
    zero = module_of(OBJECTIVES[name](), stabilizer=SensitivityStabilizer(weight=0), dropout=dropout)
    before = state(plain)
    for module in (plain, zero):
        fit(module, [batch()] * 3, epochs=2)
    assert_bit_equal(state(plain), state(zero))  # parameters and buffers
    moved = [key for key, value in state(plain).items() if not torch.equal(value, before[key])]
    assert set(dict(plain.net.named_parameters())) <= set(moved)
    assert {"net.bn1.running_mean", "net.bn1.running_var", "net.bn1.num_batches_tracked"} <= set(moved)


class OwnStabilizer(nn.Module):
    def __init__(self, **factors) -> None:
        super().__init__()
        vars(self).update(factors)

    def forward(self, clean, adversarial):
        return torch.stack([(adversarial[layer] - clean[layer]).abs().mean() for layer in clean]).mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_in_float64_are_cast_to_the_networks_dtype(dtype):
    module = module_of(AdversarialTraining()).to(dtype)
    images, labels = batch()
    loss = module.training_step((images.double(), labels), 0)
    logits = module.predict_step(images.double(), 0)
    assert (loss.isfinite(), logits.dtype) == (True, dtype)
    assert torch.equal(module.predict_step((images.double(), labels), 0), logits)


@pytest.mark.parametrize("factor", ["weight", "scale"])
@pytest.mark.parametrize("value", [-0.5, {"relu1": 0.5}, torch.tensor([0.5, 0.1]), None], ids=str)
def test_an_own_stabilizer_is_left_out_only_at_the_number_0(factor, value):
    module = module_of(AdversarialTraining(), stabilizer=OwnStabilizer(**{factor: value}))
    assert module.stabilizes
    step(module)
    assert "train/stabilizer" in module.train_metrics.compute()
    for zero in (0, 0.0, np.float32(0)):
        assert not module_of(AdversarialTraining(), stabilizer=OwnStabilizer(**{factor: zero})).stabilizes


@pytest.mark.parametrize("kind", [AdversarialTraining, Trades, LogitPairing])
def test_label_smoothing_is_of_the_loss_and_not_of_the_attack(kind):
    met, losses = [], []
    for smoothing in (0.0, 0.4):
        module = module_of(kind(label_smoothing=smoothing))
        module.before_passes.append(lambda views, labels: met.append(views["adversarial"]))
        losses.append(module.train().training_step(batch(), 0).item())
    assert torch.equal(*met)
    assert losses[0] != losses[1]


def precision_settings(precision):
    """Of the Trainer; float16 with its loss scaling, which Lightning gives to GPUs alone, on the CPU."""
    if precision != "16-mixed":
        return {"precision": precision}
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_the_trainer_clips_the_norm_of_the_gradient(precision):
    steps = []
    for clipping in ({}, {"gradient_clip_val": 0.05}):
        settings = {**clipping, **precision_settings(precision)}
        module = module_of(AdversarialTraining(), stabilizer=SensitivityStabilizer())
        before = [weight.detach().clone() for weight in module.net.parameters()]
        fit(module, [batch()], **settings)
        moved = [weight.detach() - old for weight, old in zip(module.net.parameters(), before, strict=True)]
        steps.append(torch.cat([each.flatten() for each in moved]))
    free, clipped = steps
    assert free.norm() > 0.1 * 0.06
    torch.testing.assert_close(clipped, free * 0.1 * 0.05 / free.norm(), rtol=1e-3, atol=1e-6)  # a rate of 0.1


@pytest.mark.parametrize("handling", ["batch", "frozen"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_stabilizers_own_pass_leaves_no_trace_in_batch_norm(name, handling):
    # one replay: at the second one the weights have moved by then, and differently
    objective = Free(replays=1) if name == "free" else OBJECTIVES[name]()
    plain = module_of(objective, dropout=True)
    stabilized = module_of(objective, stabilizer=SensitivityStabilizer(weight=1.0, batch_norm=handling), dropout=True)
    for module in (plain, stabilized):
        fit(module, [batch()])
    buffers = [dict(module.net.named_buffers()) for module in (plain, stabilized)]
    assert_bit_equal(*buffers)
    assert int(plain.net.net.bn1.num_batches_tracked) == len(required_views(objective))


def test_an_update_pass_is_asked_for_by_name():
    plain = module_of(AdversarialTraining())
    stabilized = module_of(AdversarialTraining(), stabilizer=SensitivityStabilizer(batch_norm="update"))
    for module in (plain, stabilized):
        module.train()
        module.training_step(batch(), 0)
    first, second = (module.net.net.bn1.num_batches_tracked for module in (plain, stabilized))
    assert (int(first), int(second)) == (1, 2)


@pytest.mark.parametrize("through_clean", [True, False])
def test_loss_and_gradients_of_a_stabilized_step_against_the_definition(through_clean):
    weight, top = 0.7, 0.3
    stabilizer = SensitivityStabilizer(weight=weight, top=top, gradient_through_clean=through_clean)
    module = module_of(AdversarialTraining(), stabilizer=stabilizer).double()
    images, labels = batch()
    images = images.double()
    reference = copy.deepcopy(module.net).train()
    module.train()
    loss = module.training_step((images, labels), 4)
    loss.backward()

    # the same draws, then the definition: layer by layer, neuron by neuron, sample by sample
    torch.manual_seed(draw_seed(0, 0, 0, 4, 0))
    adversarial = GradientAttack(epsilon=0.1, steps=3)(reference, images, labels)

    def forward(inputs):
        seen = []
        net = reference.net
        hooks = [
            layer.register_forward_hook(lambda _module, _input, output: seen.append(output))
            for layer in (net.relu1, net.relu2, net.relu3, net.relu4)
        ]
        logits = reference(inputs)
        for hook in hooks:
            hook.remove()
        return logits, seen

    logits, moved = forward(adversarial)
    _, still = forward(images)
    if not through_clean:
        still = [feature.detach() for feature in still]
    expected = F.cross_entropy(logits, labels)
    for clean, shifted in zip(still, moved, strict=True):
        neurons = []
        for neuron in range(clean.shape[1]):
            total = 0.0
            for sample in range(len(images)):
                difference = clean[sample, neuron] - shifted[sample, neuron]
                total = total + difference.abs().sum() / difference.numel()
            neurons.append(total / len(images))
        count = max(1, int(top * len(neurons) + 1e-9))
        largest = sorted(range(len(neurons)), key=lambda neuron, row=neurons: -float(row[neuron].detach()))[:count]
        expected = expected + weight / len(still) * sum(neurons[neuron] for neuron in largest) / count
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    for mine, theirs in zip(module.net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-12)


STEPS = {"eval, gradient": 3, "backward": 4}  # an attack of three steps, and the training step's own backward pass
PASSES = {  # of one batch: {objective: (without stabilizer, with)}
    "natural": ({"train, gradient": 1, "backward": 1}, {**STEPS, "train, gradient": 2}),
    "pgd": ({**STEPS, "train, gradient": 1}, {**STEPS, "train, gradient": 2}),
    "half": ({**STEPS, "train, gradient": 2}, {**STEPS, "train, gradient": 2}),
    "alp": ({**STEPS, "train, gradient": 2}, {**STEPS, "train, gradient": 2}),
    "trades": (
        {**STEPS, "eval, no gradient": 1, "train, gradient": 2},
        {**STEPS, "eval, no gradient": 1, "train, gradient": 2},
    ),
    "mart": ({**STEPS, "train, gradient": 2}, {**STEPS, "train, gradient": 2}),
    # three replays, and no pass for the attack
    "free": ({"train, gradient": 3, "backward": 3}, {"train, gradient": 6, "backward": 3}),
}


@pytest.mark.parametrize("weight", [None, 0, 1.0])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_pass_that_the_definition_does_not_need(name, weight, monkeypatch):
    stabilizer = None if weight is None else SensitivityStabilizer(weight=weight)
    module = module_of(OBJECTIVES[name](), stabilizer=stabilizer)
    with counted_passes(module.net, monkeypatch) as counted:
        fit(module, [batch()])
    assert counted == PASSES[name][bool(weight)]


def test_objectives_without_their_weight_cost_no_pass(monkeypatch):
    for objective, passes in (
        (Trades(beta=0), PASSES["natural"]),
        (LogitPairing(weight=0, clean_weight=0.0), PASSES["pgd"]),
        (LogitPairing(weight=0, clean_weight=1.0), PASSES["natural"]),
    ):
        module = module_of(objective)
        with counted_passes(module.net, monkeypatch) as counted:
            fit(module, [batch()])
        assert counted == passes[0]


@pytest.mark.parametrize(
    ("weightless", "other"),
    [
        (lambda: Trades(beta=0), Natural),
        (lambda: LogitPairing(weight=0, clean_weight=0.5), lambda: AdversarialTraining(clean_weight=0.5)),
    ],
    ids=["trades", "alp"],
)
def test_objectives_without_their_weight_train_bit_identically_to_their_baselines(weightless, other):
    modules = [module_of(objective(), dropout=True) for objective in (weightless, other)]
    for module in modules:
        fit(module, [batch()] * 3)
    assert_bit_equal(*map(state, modules))


@pytest.mark.parametrize("name", ["natural", "pgd", "trades", "free"])
def test_a_stabilizer_that_names_logits_and_labels_gets_those_of_its_adversarial_features(name):
    given = []

    def stabilizer(clean, adversarial, labels, adversarial_logits):
        given.append((adversarial, labels, adversarial_logits))
        return sum((clean[layer] - adversarial[layer]).abs().mean() for layer in clean)

    module = module_of(OBJECTIVES[name](), stabilizer=stabilizer)
    images, labels = batch()
    # free training moves the weights before this returns
    last = copy.deepcopy(module.net.net.fc2 if hasattr(module.net.net, "fc2") else [*module.net.net.children()][-1])
    fit(module, [(images, labels)])
    features, got, logits = given[0]
    assert torch.equal(got, labels)
    torch.testing.assert_close(logits, last(features["relu4"]))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_attribution_selects_under_every_objective(name):
    states = []
    for select in ("most_sensitive", "attribution"):
        module = module_of(OBJECTIVES[name](), stabilizer=SensitivityStabilizer(select=select, top=0.3))
        fit(module, [batch()] * 2)
        states.append(state(module))
    assert not torch.equal(*(each["net.conv1.weight"] for each in states))
    assert all(value.isfinite().all() for value in states[1].values())


def test_a_clean_pass_without_gradient_keeps_no_graph():
    module = module_of(AdversarialTraining(), stabilizer=SensitivityStabilizer(gradient_through_clean=False))
    modes = []
    module.net.register_forward_pre_hook(lambda net, inputs: modes.append((net.training, torch.is_grad_enabled())))
    module.train()
    module.training_step(batch(), 0)
    assert modes[-2:] == [(True, True), (True, False)]


def test_a_step_is_a_function_of_seed_and_place():
    draws = {}
    for seed, number in ((0, 0), (0, 0), (0, 1), (1, 0)):
        torch.manual_seed(hash((seed, number)) % 1000)  # whatever was drawn before
        module = module_of(AdversarialTraining(), dropout=True, seed=seed)
        module.train()
        loss = float(module.training_step(batch(), number).detach())
        assert draws.setdefault((seed, number), loss) == loss
    assert len(set(draws.values())) == 3
    places = [(0, 0, 0, 0, 0), (1, 0, 0, 0, 0), (0, 1, 0, 0, 0), (0, 0, 1, 0, 0), (0, 0, 0, 1, 0), (0, 0, 0, 0, 1)]
    assert len({draw_seed(*place) for place in places}) == len(places)


def test_augmentation_acts_in_training_before_the_attack():
    seen = []

    def augment(images):
        seen.append(images)
        return torch.zeros_like(images)

    module = module_of(AdversarialTraining(), augment=augment)
    module.train()
    inputs = []
    module.net.register_forward_pre_hook(lambda net, args: inputs.append(args[0].detach()))
    module.training_step(batch(), 0)
    assert len(seen) == 1
    assert all(float(images.max()) <= 0.1 + 1e-6 for images in inputs)


def test_the_first_loss_that_is_not_finite_is_reported_with_its_step(monkeypatch):
    module = module_of(Natural())
    module.train()
    for number, weight in enumerate((None, 0.0, float("nan"), float("nan"), 0.0)):
        monkeypatch.setattr(RobustClassifier, "global_step", number)
        if weight is not None:
            with torch.no_grad():
                module.net.net.fc2.weight.fill_(weight)
        module.training_step(batch(), number)
        if number == 1:
            module.check_finite()
    # a second broken loss and a finite one came after it, yet the first is remembered
    with pytest.raises(RunStopped, match="the loss is not finite at step 2 "):
        module.check_finite()


def test_the_first_batch_is_checked():
    images, labels = batch()
    for wrong, message in (
        ((images * 255, labels), r"images outside \[0, 1\]"),
        ((images.byte(), labels), "images are torch.uint8"),
        ((images, labels + 5), "labels contain the class 7; the classes are 0 to 2"),
    ):
        with pytest.raises(InputError, match=message):
            module_of(Natural()).training_step(wrong, 0)


def test_full_precision_is_float32_and_restored():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    layer, inputs = nn.Linear(4, 4), torch.rand(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(inputs).dtype == torch.bfloat16
        with full_precision(torch.device("cpu")):
            assert layer(inputs).dtype == torch.float32
            assert not torch.backends.cuda.matmul.allow_tf32
            assert not torch.backends.cudnn.allow_tf32
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_channels_last_and_bf16_train():
    module = module_of(AdversarialTraining(), stabilizer=SensitivityStabilizer())
    module.net.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = step(module)
    assert loss.isfinite()
    assert module.net.net.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(parameter.dtype == torch.float32 for parameter in module.net.parameters())


@pytest.mark.parametrize("part", ["state_dict", "current_model_state"])
def test_a_run_resumes_with_another_stabilizer_or_without_one(part):
    """allow_changed_config: the scores of the stabilizer are in the state_dict, and loading is strict."""
    for saved, loaded in ((SensitivityStabilizer(), None), (None, SensitivityStabilizer())):
        modules = [module_of(Natural(), stabilizer=stabilizer) for stabilizer in (saved, loaded)]
        checkpoint = {part: modules[0].state_dict()}
        modules[1].on_load_checkpoint(checkpoint)
        modules[1].load_state_dict(checkpoint[part])
