"""sync_batch_norm: where it changes the layers, and that these are hooked, handled and saved as BatchNorm is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nsr.app.composition import compose_checked, plain, without_hydra
from nsr.app.machine import shares_batches
from nsr.app.network import build_classifier
from nsr.data import DataDescription
from nsr.errors import InputError
from nsr.features import FeatureExtractor
from nsr.layers import find_layers

DIGITS = DataDescription(1, 8, 10, (0.3,), (0.4,), tuple("0123456789"))
IMAGES = torch.linspace(0, 1, 6 * 64).view(6, 1, 8, 8)


def classifier_of(monkeypatch, *overrides: str, gpus: int = 0):
    """Built as the run of these settings would, on a machine with so many GPUs."""
    composed = compose_checked("train", ["model.width=4", "sync_batch_norm=true", *overrides])
    settings = plain(without_hydra(composed))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    torch.manual_seed(0)
    exchange = settings["sync_batch_norm"] and shares_batches(settings)
    return build_classifier(settings, DIGITS, exchange=exchange)


def synchronized(net: nn.Module) -> set[str]:
    return {name for name, module in net.named_modules() if isinstance(module, nn.SyncBatchNorm)}


@pytest.mark.parametrize("trainer", [("trainer.devices=2",), ("trainer=ddp",), ("trainer=ddp", "trainer.num_nodes=2")])
def test_the_layers_of_several_gpus(monkeypatch, trainer):
    net = classifier_of(monkeypatch, *trainer, gpus=2)
    plain = classifier_of(monkeypatch, *trainer, "sync_batch_norm=false", gpus=2)
    assert synchronized(net) == {"net.bn1", "net.bn2", "net.bn3"}
    assert synchronized(plain) == set()
    # a checkpoint of either is one of the other
    state = net.state_dict()
    assert list(state) == list(plain.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())
    plain.load_state_dict(state)


@pytest.mark.parametrize("gpus", [0, 1, 2])
def test_a_single_process_keeps_its_layers(monkeypatch, gpus):
    assert synchronized(classifier_of(monkeypatch, gpus=gpus)) == set()


def test_processes_without_gpus_are_refused(monkeypatch):
    with pytest.raises(InputError, match="sync_batch_norm is true; torch's SyncBatchNorm needs GPUs"):
        classifier_of(monkeypatch, "trainer=ddp_cpu")
    assert synchronized(classifier_of(monkeypatch, "trainer=ddp_cpu", "sync_batch_norm=false")) == set()


def test_hooks_of_synchronized_layers(monkeypatch):
    net = classifier_of(monkeypatch, "trainer.devices=2", gpus=2)
    plain = classifier_of(monkeypatch, "trainer.devices=2", "sync_batch_norm=false", gpus=2)
    features = []
    for network in (net, plain):
        layers = find_layers(network, IMAGES, ["bn1", "relu1"], root=network.net)
        extractor = FeatureExtractor(network.train(), layers, root=network.net)
        logits, hooked = extractor(IMAGES)
        features.append(hooked | {"logits": logits})
    assert list(features[0]) == ["bn1", "relu1", "logits"]
    for name, value in features[0].items():
        torch.testing.assert_close(value, features[1][name])
