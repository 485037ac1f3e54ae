"""The journey of docs/fine-tuning.md, by its own commands, smaller."""

from __future__ import annotations

import copy
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from nsr.app.train import train
from nsr.training.module import RobustClassifier
from tests.conftest import ROOT, job, read_json

PAGE = (ROOT / "docs" / "fine-tuning.md").read_text()
COMMANDS = [shlex.split(line)[2:] for line in re.findall(r"^python train\.py .*", PAGE, flags=re.MULTILINE)]
SMALLER = (
    *("logger=csv", "trainer.max_epochs=2", "trainer.limit_train_batches=4", "trainer.accelerator=cpu"),
    *("model.width=4", "validation_attack=fgsm", "test_attacks=[clean,fgsm]", "data.validation_images=40"),
)


def slow_scores(net: Any, batches: list[Any], epsilon: float) -> dict[str, torch.Tensor]:
    """Return {layer: mean over images and places of |clean - adversarial|} under FGSM, image by image."""
    features: dict[str, torch.Tensor] = {}
    for name, module in net.net.named_modules():
        if name.startswith("relu"):
            module.register_forward_hook(lambda _, __, out, name=name: features.__setitem__(name, out[0].detach()))
    sums: dict[str, Any] = {}
    pairs = [(image, label) for images, labels, *_ in batches for image, label in zip(images, labels, strict=True)]
    for image, label in pairs:
        image = image[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(net(image), label[None]), image)
        clean = dict(features)
        net((image + epsilon * gradient.sign()).clamp(0, 1))
        for name, values in features.items():
            difference = (values - clean[name]).abs().double().flatten(1 if values.ndim > 1 else 0)
            sums[name] = sums.get(name, 0) + (difference.mean(1) if values.ndim > 1 else difference)
    return {name: total / len(pairs) for name, total in sums.items()}


@pytest.mark.slow
def test_the_journey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(compile(code, "fine-tuning.md", "exec"), {})
    started: list[Any] = []

    def spy(self: Any, original: Any = RobustClassifier.on_train_start) -> None:
        batches = [(images.double(), labels) for images, labels, *_ in self.trainer.val_dataloaders]
        started.append((copy.deepcopy(self.net).eval(), batches))
        original(self)

    monkeypatch.setattr(RobustClassifier, "on_train_start", spy)
    journey = [command for command in COMMANDS if any(word.startswith("hydra.run.dir=") for word in command)]
    for command in journey:
        *overrides, directory = command
        # float64, so that no gradient of FGSM has another sign in a pass of another batch size
        once = ["stabilizer=sns", "stabilizer.refresh=once", "trainer.precision=64-true"]
        further = once if "objective=pgd" in command else []
        train(job("train", tmp_path / directory.partition("=")[2], *overrides, *SMALLER, *further))
    before, after = (
        torch.load(path, weights_only=True)["state_dict"]
        for path in (tmp_path / "runs/pretrained/checkpoints/last.ckpt", tmp_path / "runs/groups/checkpoints/last.ckpt")
    )
    net, batches = started[1]
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[f"net.{name}"].to(tensor.dtype)) is not name.startswith("net.fc2."), (
            name
        )  # before a step
    scores = after["stabilizer._extra_state"]
    for name, values in slow_scores(net, batches, 0.2).items():
        assert scores[name].tolist() == pytest.approx(values.tolist(), rel=1e-4, abs=1e-6), name
    assert 0.25 < read_json(tmp_path / "runs/groups/metrics.json")["test/clean_accuracy"] <= 1  # 0.2 is chance
