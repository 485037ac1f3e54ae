"""Rankings of each layer's neurons on one half of the images: by sensitivity, and by what the controls use.

Two of them estimate an effect. F and F' are a layer's outputs on the clean image x and on the adversarial one x'.

attribution, a first-order estimate of patch_clean for one neuron alone (attribution patching: Nanda 2023; Kramar et
al., AtP*, 2024), with M the label's logit minus the largest other one as a function of the layer's outputs:

    attribution_m = mean over images of  sum over positions p of  dM/dF'_mp * (F_mp - F'_mp)

conductance (Dhamdhere, Sundararajan and Yan 2019), computed by captum:

    Cond_m(x) = sum over positions p of  integral over a in [0, 1] of  df(x_a)/dF_mp * dF_mp(x_a)/da
    x_a = x + a (x' - x)

It is the part of the change of the label's logit f, from x to x', that flows through neuron m. Over the neurons of a
layer that no shortcut bypasses it sums to that change. A neuron's score is the mean over images of |Cond_m|.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nsr import sensitivity
from nsr.errors import InputError
from nsr.interventions.pairs import Pairs
from nsr.interventions.patching import Patcher, Recording
from nsr.layers.axes import Layer
from nsr.layers.names import name_and_call
from nsr.layers.passes import named_modules
from nsr.losses import margin
from nsr.modes import frozen_parameters, full_precision, network_mode
from nsr.sensitivity import SensitivitySums, divide, sensitivity_sums

RANKINGS = ("activation", "relative", "squared_difference", "attribution", "conductance")  # beside sensitivity
STEPS = 20  # of the integral of conductance


class LayerRanking(NamedTuple):
    """Scores of one layer's neurons, each (neuron,) float64."""

    sensitivity: Tensor  # absolute
    squared_difference: Tensor  # mean squared activation difference, over images and positions
    relative: Tensor
    activation: Tensor  # mean |output| on clean images
    mean_output: Tensor  # on clean images, with its sign
    attribution: Tensor | None = None
    conductance: Tensor | None = None

    def summary(self) -> dict[str, float | None]:
        """Metrics of the layer; the correlation is Pearson's over neurons, None where a score is constant."""
        both = torch.stack([self.sensitivity, self.activation])
        is_constant = bool((both == both[:, :1]).all(1).any())
        return {
            "neurons": len(self.sensitivity),
            "mean_sensitivity": float(self.sensitivity.mean()),
            "mean_activation": float(self.activation.mean()),
            "correlation_of_sensitivity_and_activation": None if is_constant else float(torch.corrcoef(both)[0, 1]),
        }


def rank_neurons(patcher: Patcher, batches: Iterable[Pairs], rankings: Sequence[str] = ()) -> dict[str, LayerRanking]:
    """Rank neurons by sums over the batches: two passes per batch, plus those of attribution and conductance.

    Args:
        patcher: of the network and its layers.
        batches: iterated once.
        rankings: of RANKINGS; attribution and conductance are computed only if named.
    """
    sums: dict[str, dict[str, Tensor]] = {}
    samples = 0
    for pairs in batches:
        clean, adversarial = patcher.record(pairs.images), patcher.record(pairs.adversarial)
        samples += len(pairs.labels)
        for name, layer in patcher.layers.items():
            new = _layer_sums(clean.features[name], adversarial.features[name])
            if "attribution" in rankings:  # (batch, neuron) -> (neuron,)
                new["attribution"] = attribution(patcher, name, clean, adversarial, pairs.labels).double().sum(0)
            if "conductance" in rankings:
                size = patcher.internal_batch_size
                flow = conductance(patcher.net, layer, *pairs, root=patcher.root, internal_batch_size=size)
                new["conductance"] = flow.abs().double().sum(0)
            sums[name] = {key: sums[name][key] + more for key, more in new.items()} if name in sums else new
    return {name: _ranking(parts, samples) for name, parts in sums.items()}


def _layer_sums(clean: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
    """Activation difference, activation, output and squared difference, summed over the batch, (neuron,) float64."""
    difference, activation, _ = sensitivity_sums(clean, adversarial, dtype=torch.float64)
    sums = {"difference": difference, "activation": activation}
    for name, values in (("mean_output", clean), ("squared_difference", (clean - adversarial) ** 2)):
        sums[name] = values.reshape(*values.shape[:2], -1).mean(2, dtype=torch.float64).sum(0)
    return sums


def _ranking(sums: Mapping[str, Tensor], samples: int) -> LayerRanking:
    parts = SensitivitySums(sums["difference"], sums["activation"], samples)
    means = {name: values / samples for name, values in sums.items() if name != "difference"}
    return LayerRanking(sensitivity=divide(parts), relative=divide(parts, "relative"), **means)


def attribution(patcher: Patcher, layer: str, clean: Recording, adversarial: Recording, labels: Tensor) -> Tensor:
    """Estimate, to first order, how far the label's logit rises above the others if a neuron has its clean outputs.

    Args:
        layer: its name.
        clean, adversarial: passes of `patcher` on the same images.
        labels: (batch,).

    Returns:
        (batch, neuron).
    """
    with torch.inference_mode(False), frozen_parameters(patcher.net):
        outputs = adversarial.features[layer].clone().requires_grad_()
        every = torch.ones(1, outputs.shape[1], dtype=torch.bool, device=outputs.device)
        logits = patcher.logits(adversarial, layer, outputs, every, differentiable=True)[0]
        (slope,) = torch.autograd.grad(margin(logits, labels.clone()).sum(), [outputs])  # of the other logit minus it
    return sensitivity.attribution(clean.features[layer], adversarial.features[layer], slope)


def conductance(
    net: nn.Module,
    layer: Layer,
    images: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    *,
    root: nn.Module | None = None,
    internal_batch_size: int | None = None,
) -> Tensor:
    """Compute each image's conductance through each neuron of one layer.

    Args:
        net: images -> logits.
        layer: of `find_layers`; its module must be called once per pass.
        images, adversarial: (batch, ...), the ends of the integral.
        labels: (batch,).
        root: the module that the layer's name refers to; None: `net`.
        internal_batch_size: images times steps of the integral in one pass; at least the batch.

    Returns:
        (batch, neuron).

    Errors:
        InputError: captum is not installed, or the layer is a later call of a module.
    """
    name, call = name_and_call(layer.name)
    if call is not None:
        raise InputError(
            f"rankings has conductance, which captum cannot compute for a later call of a module, {layer.name}; leave "
            "out the ranking or the layer"
        )
    try:
        from captum.attr import LayerConductance
    except ImportError:
        raise InputError("rankings has conductance, which needs captum: pip install captum, or leave it out") from None
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        frozen_parameters(net),
        network_mode(net, "eval"),
        full_precision(images.device),
    ):
        flow = LayerConductance(net, named_modules(root or net)[name]).attribute(
            adversarial.clone(),
            images.clone(),
            target=labels,
            n_steps=STEPS,
            method="riemann_trapezoid",
            internal_batch_size=None if internal_batch_size is None else max(internal_batch_size, len(images)),
        )
    flow = layer.to_features((flow[0] if isinstance(flow, tuple) else flow).detach())
    return flow.reshape(*flow.shape[:2], -1).sum(2)
