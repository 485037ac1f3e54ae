"""Behavior on a GPU; skipped where there is none, and with NSR_GPU_TINY=1 tried on the CPU as far as that has it.

benchmarks/gpu.sh runs this file without tests/conftest.py, on machines that have no hydra.
"""

from __future__ import annotations

import copy
import os
import socket

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from benchmarks.step_times import TINY, adversarial_training, network, random_batch
from nsr import neuron_sensitivity, pgd
from nsr.attacks import GradientAttack
from nsr.features import FeatureExtractor
from nsr.interventions import Interventions, intervene
from nsr.layers import find_layers
from nsr.metrics.sensitivity import ClassCounts, network_sums
from nsr.modes import batch_norm_mode, full_precision
from nsr.objectives import AdversarialTraining
from nsr.stabilizer import SensitivityStabilizer
from nsr.training.module import RobustClassifier

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
BACKEND = "inductor" if HAS_GPU else "aot_eager"
TRIED = HAS_GPU or os.environ.get("NSR_GPU_TINY") == "1"

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not TRIED, reason="needs a GPU, and torch sees none")]
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="needs a GPU, and torch sees none")


def batch(size=32):
    return random_batch(TINY, size)


def extractor_of(net, names=None):
    images = batch(2)[0].to(next(net.parameters()))
    return FeatureExtractor(net, find_layers(net, images, names, root=net.net), root=net.net)


def training_module():
    net = network(TINY).to(DEVICE)
    return adversarial_training(net, batch(2)[0].to(DEVICE), stabilizer=SensitivityStabilizer())


@pytest.fixture
def forbid_waiting():
    """The device is never waited for from the first call on."""
    yield lambda: (torch.cuda.synchronize(), torch.cuda.set_sync_debug_mode("error"))
    torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


# in float32 the sign of a gradient near 0 is a matter of rounding, so only the measurement is compared
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_attack_and_sensitivities_are_those_of_the_cpu(dtype, bound):
    images, labels = batch()
    adversarial, sensitivities = [], []
    for device in (torch.device("cpu"), DEVICE):
        net = network(TINY).eval().to(device, dtype)
        with full_precision(device):
            inputs = images.to(device, dtype)
            made = pgd(net, inputs, labels.to(device), epsilon=0.1, steps=5, random_start=False)
            adversarial.append(made.cpu())
            views = [extractor_of(net)(view)[1] for view in (inputs, adversarial[0].to(device))]
        sensitivities.append({name: neuron_sensitivity(views[0][name], views[1][name]).cpu() for name in views[0]})
    torch.testing.assert_close(sensitivities[1], sensitivities[0], rtol=bound, atol=bound / 1000)
    if dtype == torch.float64:
        torch.testing.assert_close(adversarial[1], adversarial[0], rtol=0, atol=1e-12)


def test_interventions_are_those_of_the_cpu():
    images, labels = batch()
    net = network(TINY).eval().double()
    adversarial = pgd(net, images.double(), labels, epsilon=0.1, steps=5, random_start=False)
    settings = Interventions(kinds=["patch_clean", "mean_ablation"], fractions=[0.5], n_random_sets=3, n_bootstrap=100)
    found = []
    for device in ("cpu", DEVICE):
        inputs = [tensor.to(device) for tensor in (images.double(), labels, adversarial)]
        found.append(intervene(net.to(device), *inputs, settings=settings, root=net.net))
    assert found[0].images == found[1].images
    for one, other in zip(found[0].rows, found[1].rows, strict=True):
        assert (one.layer, one.kind, one.control) == (other.layer, other.kind, other.control)
        assert one.margin == pytest.approx(other.margin, abs=1e-5)


@needs_gpu
def test_synchronized_batch_norm_gives_the_numbers_of_batch_norm(tmp_path):
    """In a group of one process: the pass, its gradients and the running statistics, with hooked layers."""
    plain = network(TINY).double().to(DEVICE).train()
    net = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))
    images = batch()[0].double().to(DEVICE)
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("nccl", init_method=store, rank=0, world_size=1)
    try:
        for handling in ("update", "batch", "frozen"):
            outcomes = []
            for each in (plain, net):
                with batch_norm_mode(each, handling):
                    logits, features = extractor_of(each, ["bn1", "relu1"])(images)
                loss = logits.square().mean() + features["bn1"].abs().mean()
                gradients = torch.autograd.grad(loss, list(each.parameters()))
                outcomes.append([logits, *features.values(), *gradients, *each.buffers()])
            for got, expected in zip(*outcomes, strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    finally:
        torch.distributed.destroy_process_group()


def fit(rank, world, port, folder):
    """One of `world` machines with a process each, that share one GPU; gloo, because NCCL refuses two on one device."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": str(rank), "LOCAL_RANK": "0"}
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.manual_seed(0)
    # no BatchNorm and no random start, so that two processes can compute what one does
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).double()
    images, labels = batch(48)
    data = TensorDataset(images.double(), labels)
    attack = GradientAttack(epsilon=0.1, steps=2, random_start=False)
    module = RobustClassifier(
        net,
        layers=find_layers(net, images[:2].double()),
        classes=10,
        objective=AdversarialTraining(),
        train_attack=attack,
        validation_attack=attack,
        stabilizer=SensitivityStabilizer(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler")
    strategy = DDPStrategy(process_group_backend="gloo") if world > 1 else "auto"
    settings = {"accelerator": DEVICE.type, "devices": 1, "num_nodes": world, "strategy": strategy}
    trainer = pl.Trainer(precision="64-true", max_epochs=2, **settings, **dict.fromkeys(quiet, False))
    sampler = DistributedSampler(data, world, rank, shuffle=False)
    trainer.fit(module, *(DataLoader(data, batch_size=12 // world, sampler=sampler) for _ in range(2)))
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    torch.save({"weights": module.net.cpu().state_dict(), "metrics": metrics}, f"{folder}/{world}_{rank}.pt")
    if world > 1:
        torch.distributed.destroy_process_group()  # gloo's threads must end before the process does


def test_two_processes_on_one_gpu_train_as_one(tmp_path):
    for world in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        torch.multiprocessing.spawn(fit, args=(world, port, str(tmp_path)), nprocs=world)
    one, *two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1_0", "2_0", "2_1"))
    for other in two:
        torch.testing.assert_close(other["weights"], one["weights"], rtol=1e-9, atol=1e-12)
    for name in ("validation/clean_accuracy", "validation/robust_accuracy"):
        assert two[0]["metrics"][name] == one["metrics"][name]


@needs_gpu
def test_a_training_step_never_waits_for_the_device(forbid_waiting):
    module = training_module()
    images, labels = (tensor.to(DEVICE) for tensor in batch())
    module.training_step((images, labels), 0).backward()  # the first checks the images, once
    forbid_waiting()
    module.training_step((images, labels), 1).backward()


@needs_gpu
def test_counting_classes_never_waits_for_the_device(forbid_waiting):
    counts = ClassCounts(10).to(DEVICE)
    logits, labels = torch.rand(8, 10).to(DEVICE), torch.arange(8).to(DEVICE)
    counts.update(logits, labels)
    forbid_waiting()
    counts.update(logits, labels)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("default")  # the compiler recommends TF32
def test_a_compiled_training_step_is_the_eager_one():
    """Attack, loss, stabilizer term and gradients, in float64."""
    steps = []
    for compiled in (False, True):
        module = training_module().double()
        images, labels = (tensor.to(DEVICE) for tensor in batch())
        if compiled:
            module.net.compile(backend=BACKEND, dynamic=False, options={"fallback_random": True} if HAS_GPU else None)
        loss = module.training_step((images.double(), labels), 0)
        loss.backward()
        steps.append([loss, *(parameter.grad for parameter in module.net.parameters())])
    for got, expected in zip(*steps, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


@needs_gpu
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("default")  # the compiler recommends TF32
def test_features_of_cuda_graphs_outlive_the_next_pass_where_they_are_cloned():
    """A CUDA graph writes its outputs into the same memory at each replay."""
    views = [batch()[0].to(DEVICE) * scale for scale in (1.0, 0.5)]
    eager, graphs = (extractor_of(network(TINY).to(DEVICE).eval()) for _ in range(2))
    graphs.net.compile(mode="reduce-overhead", dynamic=False)
    with torch.no_grad(), full_precision(DEVICE):
        expected = [eager(images)[1] for images in views]
        for _ in range(3):  # tried, recorded, replayed
            found = []
            for images in views:
                torch.compiler.cudagraph_mark_step_begin()
                found.append({name: values.clone() for name, values in graphs(images)[1].items()})
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_sensitivities_of_a_bf16_step_are_float32_and_those_reported_float64():
    module = training_module()
    images, labels = (tensor.to(DEVICE) for tensor in batch())
    extractor = extractor_of(module.net)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        loss = module.training_step((images, labels), 0)
        clean, adversarial = (extractor(view)[1] for view in (images, (images + 0.1).clamp(max=1)))
        term = module.stabilizer(clean, adversarial)
        sensitivities = {name: neuron_sensitivity(clean[name], adversarial[name]) for name in clean}
        difference, activation = network_sums(extractor.layers, clean, adversarial)
    loss.backward()
    assert loss.dtype == term.dtype == torch.float32
    assert all(parameter.grad.dtype == torch.float32 for parameter in module.net.parameters())
    assert difference.dtype == activation.dtype == torch.float64
    for name, values in clean.items():
        assert values.dtype == torch.bfloat16
        assert sensitivities[name].dtype == torch.float32
        exact = (values.double() - adversarial[name].double()).abs()
        expected = exact.mean([dim for dim in range(exact.ndim) if dim != 1])
        torch.testing.assert_close(sensitivities[name].double(), expected, rtol=1e-5, atol=1e-7)
