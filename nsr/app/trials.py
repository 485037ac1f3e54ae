"""Each part of a training is tried once, on a few images, before a run directory is made."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from nsr.app.instantiation import Settings, trial
from nsr.attacks.guard import GuardedAttack
from nsr.errors import InputError
from nsr.modes import network_mode, unchanged_buffers
from nsr.objectives import auxiliary_inputs, compute_terms
from nsr.stabilizer import stabilizing_term
from nsr.training.module import RobustClassifier
from nsr.training.optimizers import make_optimizer
from nsr.training.schedules import make_scheduler

log = logging.getLogger(__name__)


def try_training(module: RobustClassifier, settings: Settings, example: Tensor) -> None:
    """Try objective, stabilizer, optimizer and schedule; the module knows the objective's terms afterwards.

    Args:
        example: (batch, channel, height, width), a few images; their labels are 0, 1, ...

    Errors:
        InputError: one of them fails, trains nothing, or does not go with the settings.
    """
    labels = torch.arange(len(example))
    if module.mix is not None:
        labels = one_hot(labels, module.classes).to(example.dtype)
    with network_mode(module.net, "eval"):
        logits, features = module.train_extractor(example)
    terms = _try_objective(module, example, labels, logits, features)
    further = [f"auxiliary_{name}" for name in _try_auxiliary(module, settings, example)]
    if module.stabilizer is not None:
        _try_stabilizer(module, settings, labels, logits, features)
        further.append("stabilizer")
    module.train_metrics.add_terms([*terms, *further])
    optimizer = _try_optimizer(module)
    if module.scheduler is not None:
        _try_scheduler(module, module.scheduler, optimizer, settings["trainer"]["max_epochs"])
    _check_steps(module, settings)


def _try_objective(
    module: RobustClassifier, example: Tensor, labels: Tensor, logits: Tensor, features: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the terms, with the same images as clean and as adversarial view."""
    net = module.net
    values: dict[str, Any] = {"labels": labels, "net": net}
    for view in ("clean", "adversarial"):
        values |= {f"{view}_images": example, f"{view}_logits": logits, f"{view}_features": features}
    with trial("objective", "the objective"), network_mode(net, "eval"):
        terms = compute_terms(module.objective, values)
    if not any(term.requires_grad for term in terms.values()):
        kind = type(net.net).__name__
        raise InputError(f"the loss has no gradient in any weight of {kind}; the network must have some to train")
    if module.mix is not None and isinstance(module.train_attack, GuardedAttack):  # it was tried on class indices
        with trial("train_attack", "the attack"), network_mode(net, "eval"):
            module.train_attack(net, example, labels, generator=torch.Generator().manual_seed(0))
    return terms


def _try_auxiliary(module: RobustClassifier, settings: Settings, example: Tensor) -> Sequence[str]:
    """Return the names of the auxiliary heads, which give their logits in train mode alone."""
    net: Any = module.net
    if not net.auxiliary:
        return ()
    auxiliary_inputs(module.objective, {}, {})
    if settings.get("compile"):
        raise InputError("compile is true, which auxiliary heads are not made for; leave it or model.auxiliary out")
    with trial("model", "a pass in train mode"), network_mode(net, "train"), unchanged_buffers(net), torch.no_grad():
        net(example)
    return tuple(net.auxiliary)


def _try_stabilizer(
    module: RobustClassifier, settings: Settings, labels: Tensor, logits: Tensor, features: dict[str, Tensor]
) -> None:
    stabilizer: Any = module.stabilizer
    with trial("stabilizer", "the stabilizer"):
        if hasattr(stabilizer, "check_features"):
            if settings.get("compile") and getattr(stabilizer, "select", None) == "attribution":
                raise InputError(
                    "compile is true, and the logits of a compiled network do not depend on its captured features; "
                    "leave it out, or take another stabilizer.select than attribution"
                )
            stabilizer.check_features(features, logits, labels)
        else:
            term = stabilizing_term(stabilizer, features, features, adversarial_logits=logits, labels=labels)
            if any(each.requires_grad for each in features.values()) and not term.requires_grad:
                raise InputError("the stabilizer's term carries no gradient; it must not be detached")


def _try_optimizer(module: RobustClassifier) -> Optimizer:
    """Return the optimizer after one step with a gradient of 0 of its smallest parameter, which is put back."""
    net: Any = module.net
    with trial("optimizer", "the optimizer"):
        optimizer = make_optimizer(module.optimizer, net)  # type: ignore[arg-type]
        if not isinstance(optimizer, Optimizer):
            raise InputError(f"optimizer gives a {type(optimizer).__name__}; it must give a torch.optim.Optimizer")
        own = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        if own.isdisjoint(net.parameters()):
            raise InputError("optimizer has none of the network's parameters, so that it would train nothing")
        if type(module).configure_optimizers is RobustClassifier.configure_optimizers:
            _warn_of_untrained(module, own)
        calls = []
        one = min(own, key=Tensor.numel)
        before = one.detach().clone()

        def closure() -> float:
            calls.append(True)
            one.grad = torch.zeros_like(one)  # dense, which SparseAdam does not take
            return 0.0

        try:
            optimizer.step(closure)
        finally:
            one.grad = None
            with torch.no_grad():
                one.copy_(before)
        if not calls and module.automatic_optimization:
            raise InputError("optimizer.step(closure) does not call its closure, which computes the gradients; it must")
    return optimizer


def _warn_of_untrained(module: RobustClassifier, trained: Collection[nn.Parameter]) -> None:
    """Warn of parameters of objective or stabilizer: the optimizer gets the network's alone."""
    for place in ("objective", "stabilizer"):
        part = getattr(module, place)
        parameters = part.named_parameters() if isinstance(part, nn.Module) else ()
        names = [name for name, each in parameters if each.requires_grad and each not in trained]
        if names:
            message = "%s.%s is not trained: the optimizer gets the network's parameters alone; freeze it, or train it "
            log.warning(message + "by a module of your own (docs/extending.md)", place, names[0])


def _try_scheduler(module: RobustClassifier, scheduler: Callable[..., Any], optimizer: Optimizer, epochs: int) -> None:
    with trial("scheduler", "the schedule"):
        lengths = {"total_steps": 10 * epochs, "steps_per_epoch": 10}  # the data's are unknown
        made = make_scheduler(scheduler, optimizer, lengths if module.scheduler_interval == "step" else {})
        own_step = type(module).lr_scheduler_step is not pl.LightningModule.lr_scheduler_step
        if not isinstance(made, LRScheduler) and not own_step:
            raise InputError(f"scheduler gives a {type(made).__name__}; it must give a schedule of torch")
        optimizer.step(lambda: 0.0)  # torch warns of a schedule that is stepped before
        made.step(*([0.0] if isinstance(made, ReduceLROnPlateau) else []))  # its metric


def _check_steps(module: RobustClassifier, settings: Settings) -> None:
    """Raise InputError for flags of the Trainer that change steps where the module makes its own."""
    for name, neutral in (("accumulate_grad_batches", 1), ("gradient_clip_val", None)):
        value = settings["trainer"].get(name, neutral)
        if value not in (None, neutral) and not module.automatic_optimization:
            why = "this objective makes its own optimizer steps, in which it has no meaning"
            raise InputError(f"trainer.{name} is {value}; {why}: leave it out")
