"""The attacks and metrics of a run or an evaluation, from their settings."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torchmetrics import Metric, MetricCollection

from nsr.app.checkpoints import load_network, read_part, read_settings
from nsr.app.instantiation import EXAMPLES, Settings, instantiate, locate, make_callable, named_arguments, trial
from nsr.app.network import build_classifier, check_classifier, example_images
from nsr.attacks import guarded
from nsr.attacks.guard import GuardedAttack
from nsr.data import DataDescription
from nsr.errors import InputError
from nsr.evaluation.curve import expanded
from nsr.evaluation.masking_checks import PROBES, check_measured
from nsr.evaluation.suite import AttackSuite
from nsr.models import Classifier
from nsr.modes import network_mode

SIZES = ("channels", "image_size", "classes", "mean", "std")  # of the data that a network was made for


def build_attack(settings: Settings, attack: Settings, place: str, description: DataDescription) -> Any:
    """Make an attack, guarded where it is not nsr's; other networks that it needs come from their checkpoints.

    Args:
        settings: of the whole command.
        attack: of the attack.
        place: where it stands in the configuration.
        description: of the data.
    """
    own, further = dict(attack), {}
    named = inspect.signature(locate(own, place)).parameters
    if "checkpoints" in own and "checkpoints" not in named:
        # the threat model stands beside them for the table; the attack within has its own
        own = {name: value for name, value in own.items() if name not in ("norm", "epsilon") or name in named}
        further["networks"] = [_network_of(path, settings, place, description) for path in own.pop("checkpoints") or ()]
    return guarded(make_callable(own, place, **further), norm=settings["norm"], epsilon=settings["epsilon"])


def try_attack(attack: Any, place: str, classifier: nn.Module, description: DataDescription) -> None:
    """Run an attack that is not nsr's once, so that what it raises is known before a run begins."""
    if not isinstance(attack, GuardedAttack):
        return
    images = torch.full_like(example_images(description), 0.5)
    with trial(place, "the attack"), network_mode(classifier, "eval"):
        attack(classifier, images, torch.zeros(EXAMPLES, dtype=torch.int64), generator=torch.Generator().manual_seed(0))


def _network_of(path: Any, settings: Settings, place: str, description: DataDescription) -> Classifier:
    """The network of a checkpoint, with its own normalization."""
    saved, source = read_settings(path)
    model = read_part("model", source, path, trusted=settings["trusted"]) | {"weights": None}
    theirs: Any = {name: (source.get("data") or {}).get(name) for name in SIZES}
    network = build_classifier({"model": model}, replace(description, **theirs))
    load_network(network, saved, path)
    try:
        check_classifier(network, description)
    except InputError as error:
        raise InputError(f"{place}.checkpoints: {str(path)!r} cannot be used on these data: {error}") from error
    return network


def build_suite(settings: Settings, classifier: nn.Module, description: DataDescription) -> AttackSuite:
    """Make the attacks of the test; sensitivity is measured in an evaluation alone."""
    attacks = {}
    for name, attack in expanded(settings["test_attacks"]).items():
        if attack is not None:
            attacks[name] = build_attack(settings, attack, f"test_attacks.{name}", description)
            try_attack(attacks[name], f"test_attacks.{name}", classifier, description)
    sensitivity_attack = None
    if "sensitivity_attack" in settings:
        sensitivity_attack = build_attack(settings, settings["sensitivity_attack"], "sensitivity_attack", description)
        try_attack(sensitivity_attack, "sensitivity_attack", classifier, description)
    probes = PROBES if settings["checks"].get("enabled") else None
    if probes is not None:
        check_measured(settings["checks"]["stop_on"], ["clean", *attacks, *probes])
    metrics = build_metrics(settings, description)
    return AttackSuite(
        attacks, sensitivity_attack=sensitivity_attack, probes=probes, metrics=metrics, seed=settings["seed"]
    )


def build_metrics(settings: Settings, description: DataDescription) -> dict[str, Any]:
    """Make the user's own torchmetrics, tried on logits and labels."""
    metrics: dict[str, Any] = {}
    for name, own in (settings.get("metrics") or {}).items():
        if own is None:
            continue
        place = f"metrics.{name}"
        offered = {"num_classes": description.classes}
        further = {key: value for key, value in offered.items() if key not in own}
        metric = instantiate(own, place, **named_arguments(locate(own, place), further))
        if not isinstance(metric, (Metric, MetricCollection)):
            raise InputError(f"{place} is a {type(metric).__name__}; it must be a torchmetrics Metric")
        with trial(place, "the metric"):
            labels = torch.arange(EXAMPLES)
            metric.clone()(nn.functional.one_hot(labels, description.classes).float(), labels)
        metrics[str(name)] = metric
    return metrics
