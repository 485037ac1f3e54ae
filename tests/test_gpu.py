"""What only a GPU can show; skipped aloud where there is none."""

from __future__ import annotations

import copy

import pytest
import torch
from test_training import batch, module_of, network
from torch import nn

from nsr import neuron_sensitivity, pgd
from nsr.features import FeatureTaps
from nsr.interventions import intervene
from nsr.layers import find_layers
from nsr.metrics.sensitivity import ClassCounts, network_sums
from nsr.modes import batch_norm, full_precision
from nsr.objectives import AdversarialTraining
from nsr.stabilizer import SensitivityStabilizer
from nsr.training.compilation import compile_in_place, try_training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and torch sees none"),
]


def test_the_same_attack_and_sensitivities_as_on_the_cpu():
    images, labels = batch(32)
    net = network().eval().double()
    features = []
    for device in ("cpu", "cuda"):
        net.to(device)
        here = images.double().to(device)
        adversarial = pgd(net, here, labels.to(device), epsilon=0.1, steps=5, random_start=False)
        outputs = [net.net.relu1(net.net.bn1(net.net.conv1(net.normalize(x)))) for x in (here, adversarial)]
        features.append(neuron_sensitivity(*outputs).detach().cpu())
    torch.testing.assert_close(*features, rtol=1e-9, atol=1e-12)


def test_the_same_interventions_as_on_the_cpu():
    images, labels = batch(32)
    net = network().eval().double()
    adversarial = pgd(net, images.double(), labels, epsilon=0.1, steps=5, random_start=False)
    settings = {"kinds": ["restore", "mask_mean"], "shares": [0.5], "draws": 3, "replicates": 100}
    found = []
    for device in ("cpu", "cuda"):
        here = [tensor.to(device) for tensor in (images.double(), labels, adversarial)]
        found.append(intervene(net.to(device), *here[:2], adversarial=here[2], within=net.net, **settings))
    assert found[0].images == found[1].images
    for one, other in zip(found[0].rows, found[1].rows, strict=True):
        assert (one.layer, one.kind, one.family) == (other.layer, other.kind, other.family)
        assert one.margin == pytest.approx(other.margin, abs=1e-5)


def test_a_step_never_waits_for_the_device():
    module = module_of(AdversarialTraining(), stabilizer=SensitivityStabilizer()).cuda().train()
    module.on_train_start()
    images, labels = (tensor.cuda() for tensor in batch())
    module.training_step((images, labels), 0).backward()  # the first looks at the images, once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        module.training_step((images, labels), 1).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    module.check_finite()


def test_synchronised_batch_norm_gives_the_numbers_of_batch_norm(tmp_path):
    """In a group of one process: the pass, its gradients and the running statistics, tapped on the layers as well."""
    plain = network().double().cuda().train()
    net = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))
    images = batch(32)[0].double().cuda()
    place = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("nccl", init_method=place, rank=0, world_size=1)
    try:
        for handling in ("update", "batch", "frozen"):
            outcomes = []
            for each in (plain, net):
                layers = find_layers(each, images, ["bn1", "relu1"], within=each.net)
                with batch_norm(each, handling):
                    logits, features = FeatureTaps(each, layers, within=each.net)(images)
                loss = logits.square().mean() + features["bn1"].abs().mean()
                gradients = torch.autograd.grad(loss, list(each.parameters()))
                outcomes.append([logits, *features.values(), *gradients, *each.buffers()])
            for got, expected in zip(*outcomes, strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    finally:
        torch.distributed.destroy_process_group()


def test_a_compiled_training_step_is_the_eager_one():
    """torch's own compiler: attack, loss, stabilising term and gradients, in float64."""
    torch.compiler.reset()
    figures = []
    for compiled in (False, True):
        module = module_of(AdversarialTraining(), stabilizer=SensitivityStabilizer()).double().cuda().train()
        module.on_train_start()
        images, labels = (tensor.cuda() for tensor in batch(32))
        images = images.double()
        if compiled:
            compile_in_place(module.net, sizes=(32,))
            try_training(module, images)
        loss = module.training_step((images, labels), 0)
        loss.backward()
        figures.append([loss, *(parameter.grad for parameter in module.net.parameters())])
    for got, expected in zip(*figures, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)
    torch.compiler.reset()


def test_counting_classes_never_waits_for_the_device():
    counts = ClassCounts(10).cuda()
    logits, labels = torch.rand(8, 10).cuda(), torch.arange(8).cuda()
    counts.update(logits, labels)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        counts.update(logits, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    predicted = torch.bincount(logits.argmax(1), minlength=10)
    assert torch.equal(counts.compute(), 2 * torch.stack([predicted, torch.bincount(labels, minlength=10)]))


# ---------------------------------------------------------------- torch.compile


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def tapped(**compilation):
    """Taps on a network on the GPU, which is compiled only then."""
    net = network().cuda()
    taps = FeatureTaps(net, find_layers(net, batch()[0].cuda(), within=net.net), within=net.net)
    if compilation:
        net.compile(**compilation, dynamic=False)
    return taps


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("default")  # the compiler recommends TF32
def test_taps_of_a_compiled_training_step_give_the_eager_features_and_gradients():
    images, labels = (tensor.cuda() for tensor in batch(32))
    found = []
    for taps in (tapped(), tapped(backend="inductor")):
        taps.net.train()
        with full_precision(images.device):
            logits, clean = taps(images)
            _, moved = taps((images + 0.1).clamp(max=1))
            loss = torch.nn.functional.cross_entropy(logits, labels) + SensitivityStabilizer(top=1.0)(clean, moved)
            loss.backward()
        gradients = {name: parameter.grad for name, parameter in taps.net.named_parameters()}
        found.append((loss, clean, moved, gradients))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("default")  # the compiler recommends TF32
def test_features_of_cuda_graphs_outlive_the_next_pass_where_they_are_cloned():
    sides = [batch(32)[0].cuda() * share for share in (1.0, 0.5)]
    eager, graphs = tapped(), tapped(mode="reduce-overhead")
    eager.net.eval(), graphs.net.eval()
    with torch.no_grad(), full_precision(sides[0].device):
        expected = [eager(images)[1] for images in sides]
        for _ in range(3):  # tried, recorded, replayed
            found = []
            for images in sides:
                torch.compiler.cudagraph_mark_step_begin()
                found.append({name: values.clone() for name, values in graphs(images)[1].items()})
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- half precision


def test_sensitivities_of_a_bf16_step_are_float32_and_those_reported_float64():
    module = module_of(AdversarialTraining(), stabilizer=SensitivityStabilizer()).cuda().train()
    images, labels = (tensor.cuda() for tensor in batch(32))
    module.on_train_start()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = module.training_step((images, labels), 0)
        sides = [module.taps(side)[1] for side in (images, (images + 0.1).clamp(max=1))]
        term = module.stabilizer(*sides)
        sensitivities = {name: neuron_sensitivity(sides[0][name], sides[1][name]) for name in sides[0]}
        movement, activation = network_sums(module.taps.layers, *sides)
    loss.backward()
    assert loss.dtype == term.dtype == torch.float32
    assert all(parameter.grad.dtype == torch.float32 for parameter in module.net.parameters())
    assert movement.dtype == activation.dtype == torch.float64
    for name, values in sides[0].items():
        assert values.dtype == torch.bfloat16
        assert sensitivities[name].dtype == torch.float32
        exact = (values.double() - sides[1][name].double()).abs()
        expected = exact.mean([dim for dim in range(exact.ndim) if dim != 1])
        torch.testing.assert_close(sensitivities[name].double(), expected, rtol=1e-5, atol=1e-7)
