"""The attacks and metrics of a run or an evaluation, from their settings."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torchmetrics import Metric, MetricCollection

from nsr.app.instantiation import EXAMPLES, Settings, chosen, locate, make_callable, make_one, parameters, trial
from nsr.app.network import example_images, network_of
from nsr.app.rules import NORMS
from nsr.attacks import AdaptiveAttack, GradientAttack, guarded, pgd
from nsr.attacks.guard import AttackWrapper, GuardedAttack
from nsr.data import DataDescription
from nsr.errors import InputError, check_epsilon
from nsr.evaluation.curve import expanded
from nsr.evaluation.masking_checks import PROBES, check_measured
from nsr.evaluation.suite import AttackSuite
from nsr.evaluation.threat_models import by_threat_model, threat_model, worst_cases
from nsr.layers import find_layers
from nsr.metrics.epoch import OWN_METRICS, flat_values
from nsr.modes import network_mode


def build_attack(settings: Settings, attack: Settings, place: str, net: nn.Module, description: DataDescription) -> Any:
    """Make an attack; other networks that it needs come from their checkpoints.

    One that is not nsr's is guarded, and run once, so that what it raises is known before a run begins.

    Args:
        settings: of the whole command.
        attack: its settings.
        place: where they stand in the configuration.
        net: the classifier to try it on.
    """
    own, further = dict(attack), {}
    named = parameters(locate(own, place))
    norm = own.get("norm", settings["norm"])
    if own.get("epsilon") is not None and norm in NORMS:
        pixels = description.channels * description.image_size**2
        check_epsilon(f"{place}.epsilon", own["epsilon"], norm=norm, pixels=pixels)
    if "checkpoints" in own and "checkpoints" not in named:
        # the threat model stands beside them for the table; the attack within has its own
        own = {name: value for name, value in own.items() if name not in ("norm", "epsilon") or name in named}
        trusted, paths = settings["trusted"], own.pop("checkpoints") or ()
        further["networks"] = [network_of(path, f"{place}.checkpoints", trusted, description) for path in paths]
    made = guarded(make_callable(own, place, **further), norm=settings["norm"], epsilon=settings["epsilon"])
    _check_aim(made, place)
    if isinstance(made, AdaptiveAttack) and made.layers is not None:  # names in the network, as those of `layers`
        with trial(place, "the choice of layers"):
            find_layers(net, example_images(description), made.layers, root=net.net)  # type: ignore[arg-type]
        made.layers = [f"net.{name}" for name in made.layers]
    if isinstance(made, GradientAttack):
        images = example_images(description).requires_grad_()
        what = "the gradient of the logits in the images (a differentiable pass that leaves its input as it is)"
        with trial(place, what), network_mode(net, "eval"):
            torch.autograd.grad(net(images).sum(), images)
    if isinstance(made, GuardedAttack):
        images, labels = torch.full_like(example_images(description), 0.5), torch.zeros(EXAMPLES, dtype=torch.int64)
        with trial(place, "the attack"), network_mode(net, "eval"):
            for call in (made, getattr(made, "nearest", made)):
                call(net, images, labels, generator=torch.Generator().manual_seed(0))
    return made


def _check_aim(attack: Any, place: str) -> None:
    """Raise InputError where one of nsr's attacks, or one in a wrapper, aims at the labels, which here are correct."""
    while isinstance(attack, AttackWrapper):
        attack = attack.attack
    targeted: Any = False
    if isinstance(attack, GradientAttack):
        targeted = attack.targeted
    elif isinstance(attack, partial) and attack.func is pgd:
        targeted = attack.keywords.get("targeted")
    if targeted is True:
        why = "the labels are the true classes, so that the attack would help the network"
        raise InputError(f"{place}: targeted is True, but {why}; it must be false or least_likely")


def build_suite(settings: Settings, net: nn.Module, description: DataDescription) -> AttackSuite:
    """Make the attacks of the test; sensitivity is measured in an evaluation alone."""
    wanted = {"test_attacks": expanded(settings["test_attacks"])}
    attacks = {
        name: build_attack({**settings, **threat_model(name, settings)}, attack, place, net, description)
        for name, place, attack in chosen(wanted, "test_attacks")
    }
    sensitivity = settings.get("sensitivity_attack")
    if sensitivity is not None:
        sensitivity = build_attack(settings, sensitivity, "sensitivity_attack", net, description)
    probes = PROBES if settings["checks"].get("enabled") else None
    if probes is not None:
        rows = [row for rows in by_threat_model(attacks, settings).values() for row in rows]
        check_measured(settings["checks"]["stop_on"], ["clean", *rows, *probes])
    return AttackSuite(
        attacks,
        sensitivity_attack=sensitivity,
        probes=probes,
        metrics=build_metrics(settings, description),
        worst_cases=worst_cases(attacks, settings),
        seed=settings["seed"],
    )


def build_metrics(settings: Settings, description: DataDescription) -> dict[str, Any]:
    """Make the user's own torchmetrics, tried on logits, which are no probabilities, and labels."""
    metrics: dict[str, Any] = {}
    labels = torch.arange(EXAMPLES)
    logits = 10.0 * nn.functional.one_hot(labels, description.classes) - 5
    for name, place, own in chosen(settings, "metrics"):
        kinds = (Metric, MetricCollection)
        metric = make_one(own, place, kinds, "a torchmetrics Metric", num_classes=description.classes)
        with trial(place, "the metric"):
            found = flat_values({name: metric.clone()(logits.clone(), labels.clone())})
        if taken := found.keys() & OWN_METRICS:
            raise InputError(f"{place} gives {taken.pop()!r}, a metric of nsr; give it another name than {name!r}")
        if bounds := [value for value in found if value.endswith(("_low", "_high"))]:
            fix = "names that end in _low or _high are intervals of accuracies: give its values other names"
            raise InputError(f"{place} gives {bounds[0]!r}; {fix}")
        metrics[name] = metric
    return metrics
