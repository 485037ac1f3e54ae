"""What a step keeps alive at once: the attack's graph is freed before those of training."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from nsr.attacks import GradientAttack
from nsr.objectives import AdversarialTraining, LogitPairing, Mart, Trades
from nsr.stabilizer import SensitivityStabilizer
from tests.test_training import batch, module_of

OBJECTIVES = {
    "pgd": (AdversarialTraining, {}),
    "half": (lambda: AdversarialTraining(clean_weight=0.5), {}),
    "alp": (LogitPairing, {}),
    "trades": (Trades, {"loss": "kl", "random_start": "gaussian"}),
    "mart": (Mart, {"random_start": "gaussian"}),
}


class Graphs:
    """Bytes that autograd graphs hold, each storage once: now and at most."""

    def __init__(self) -> None:
        self.held: dict[int, int] = {}  # {storage: how many nodes hold it}
        self.now = self.most = 0

    def hold(self, tensor: torch.Tensor) -> _Held:
        storage = tensor.untyped_storage()
        self.held[storage.data_ptr()] = self.held.get(storage.data_ptr(), 0) + 1
        if self.held[storage.data_ptr()] == 1:
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
        return _Held(self, tensor)


class _Held:
    def __init__(self, graphs: Graphs, tensor: torch.Tensor):
        self.graphs, self.tensor = graphs, tensor

    def __del__(self) -> None:
        storage = self.tensor.untyped_storage()
        self.graphs.held[storage.data_ptr()] -= 1
        if self.graphs.held[storage.data_ptr()] == 0:
            self.graphs.now -= storage.nbytes()


@contextmanager
def graphs():
    counted = Graphs()
    with torch.autograd.graph.saved_tensors_hooks(counted.hold, lambda held: held.tensor):
        yield counted


@pytest.mark.parametrize("stabilized", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_holds_no_more_than_its_training_graphs(name, stabilized):
    objective, settings = OBJECTIVES[name]
    module = module_of(objective(), stabilizer=SensitivityStabilizer(weight=1.0) if stabilized else None)
    module.train_attack = GradientAttack(epsilon=0.1, steps=3, **settings)
    module.train()
    images, labels = batch(32)
    adversarial = module.train_attack(module.net, images, labels)
    with graphs() as training:
        module._loss({"clean": images, "adversarial": adversarial}, labels).backward()
    with graphs() as whole:
        module.training_step((images, labels), 0).backward()
    with graphs() as attack:
        module.train_attack(module.net, images, labels)
    assert training.most > 0
    assert attack.most > 0.2 * training.most  # else it would not be noticed
    assert whole.most <= 1.1 * training.most
    assert (training.now, whole.now, attack.now) == (0, 0, 0)
