"""The interface of an objective: a callable whose parameter names say what it receives.

    objective(clean_logits=..., labels=...) -> scalar, or {term: scalar}; the loss is the sum of the terms

An attribute `inputs` lists the names where the signature does not, such as where they depend on a setting. Their order
is the order of the passes. A method `attack_loss(logits, clean_logits, labels) -> (batch,)` is the loss ascended by a
training attack that has none of its own. An attribute `soft_labels = False` refuses class probabilities as labels.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nsr.errors import InputError, callable_name, did_you_mean, named_arguments

INPUTS = (
    *("clean_logits", "adversarial_logits"),  # (batch, class)
    "labels",  # (batch,) class indices, or (batch, class) probabilities
    *("clean_features", "adversarial_features"),  # {layer: output of the layer}
    *("clean_images", "adversarial_images"),  # (batch, channel, height, width) in [0, 1]
    "net",
)
RESERVED = ("loss", "stabilizer", "clean_accuracy", "robust_accuracy")  # metrics of a training step beside the terms


def required_inputs(objective: Any) -> tuple[str, ...]:
    """The names of the inputs that an objective receives, in the order of the passes.

    Errors:
        InputError: not a callable, an unknown name, no name at all.
    """
    if not callable(objective) or inspect.isclass(objective):
        raise InputError(f"objective is {objective!r:.80}; it must be a function or object of {', '.join(INPUTS)}")
    names, title = getattr(objective, "inputs", None), callable_name(objective)
    if names is None:
        parameters, _ = named_arguments(objective.forward if isinstance(objective, nn.Module) else objective)
        # other names with a default are settings
        names = [name for name, is_required in parameters.items() if name in INPUTS or is_required]
    for name in names:
        if name not in INPUTS:
            raise InputError(
                f"the objective {title} has the input {name!r}; it must be one of {', '.join(INPUTS)}, or a "
                f"parameter with a default{did_you_mean(name, INPUTS)}"
            )
    if not names:
        raise InputError(
            f"the objective {title} has no input; it must name some of {', '.join(INPUTS)} in its "
            "signature or in an attribute `inputs`"
        )
    return tuple(names)


def required_views(objective: Any) -> tuple[str, ...]:
    """The views, 'clean' or 'adversarial', whose logits or features the objective receives, in the order of the passes.

    These passes update BatchNorm's running statistics.
    """
    views = (name.split("_")[0] for name in required_inputs(objective) if name.endswith(("_logits", "_features")))
    return tuple(dict.fromkeys(views))


def compute_terms(objective: Any, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """{term: scalar} of an objective; a single scalar is named after the objective's class or function.

    Args:
        inputs: the required ones at least, by name.

    Errors:
        InputError: a required input is missing; the result is not made of scalar tensors, or has no gradient.
    """
    names, title = required_inputs(objective), callable_name(objective)
    if missing := [name for name in names if name not in inputs]:
        raise InputError(f"the objective {title} needs {', '.join(names)}; it did not get {missing[0]}")
    result = objective(**{name: inputs[name] for name in names})
    terms = {_term_name(title): result} if isinstance(result, Tensor) else result
    if not isinstance(terms, Mapping) or not terms:
        raise InputError(
            f"the objective {title} returned {terms!r:.80}; it must return a scalar tensor or {{name: scalar tensor}}"
        )
    for term, value in terms.items():
        if not isinstance(value, Tensor) or value.ndim != 0 or not value.is_floating_point():
            got = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:80]
            raise InputError(f"the term {term!r} of the objective {title} is {got}; it must be a scalar float tensor")
        if not isinstance(term, str) or (term in RESERVED and isinstance(result, Mapping)):
            raise InputError(f"the objective {title} names a term {term!r}; it must be a text, none of {RESERVED}")
    differentiable = any(isinstance(inputs[name], Tensor) and inputs[name].requires_grad for name in names)
    if torch.is_grad_enabled() and differentiable and not any(value.requires_grad for value in terms.values()):
        raise InputError(f"the terms of the objective {title} carry no gradient; they must not be detached")
    return dict(terms)


def auxiliary_inputs(objective: Any, inputs: Mapping[str, Any], logits: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the inputs of an objective with the logits {view: (batch, class)} of an auxiliary head.

    Errors:
        InputError: the objective takes more than logits and labels, so that the head gives it no loss of its own.
    """
    names = required_inputs(objective)
    if not set(names) <= {"clean_logits", "adversarial_logits", "labels"} or names == ("labels",):
        why = "an auxiliary head has logits alone"
        raise InputError(
            f"model.auxiliary: the objective {callable_name(objective)} takes {', '.join(names)}; {why}: leave it out"
        )
    return {**inputs, **{f"{view}_logits": value for view, value in logits.items()}}


def _term_name(title: str) -> str:
    """'FeaturePairing' -> 'feature_pairing'; a name that a metric has already gets '_term'."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", title).lower()
    name = re.sub(r"\W", "", words) or "objective"
    return f"{name}_term" if name in RESERVED else name
