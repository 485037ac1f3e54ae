"""What only a GPU can show; skipped aloud where there is none."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nsr import neuron_sensitivity, pgd
from nsr.analysis import intervene
from nsr.compilation import compile_in_place, try_training
from nsr.features import FeatureTaps
from nsr.layers import find_layers
from nsr.metrics import ClassCounts
from nsr.modes import batch_norm
from nsr.objectives import AdversarialTraining
from nsr.stabilizer import SensitivityStabilizer
from tests.test_training import batch, module_of, network

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
