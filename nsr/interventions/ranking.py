"""Rankings of each layer's neurons on one half of the images: by sensitivity, and by what the controls use.

One of them is conductance (Dhamdhere, Sundararajan and Yan 2019), computed by captum:

    Cond_m(x) = sum over positions p of  integral over a in [0, 1] of  df(x_a)/dF_mp * dF_mp(x_a)/da
    x_a = x + a (x' - x)

It is the part of the change of the label's logit f, from the clean image x to the adversarial one x', that flows
through neuron m. Over the neurons of a layer that no shortcut bypasses it sums to that change. A neuron's score is the
mean over images of |Cond_m|.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nsr.errors import InputError
from nsr.interventions.pairs import Pairs
from nsr.interventions.patching import Patcher
from nsr.layers.axes import Layer
from nsr.layers.names import name_and_call
from nsr.layers.passes import named_modules
from nsr.modes import frozen_parameters, full_precision, network_mode
from nsr.sensitivity import SensitivitySums, divide, sensitivity_sums

RANKINGS = ("activation", "relative", "conductance")  # beside sensitivity
STEPS = 20  # of the integral of conductance


class LayerRanking(NamedTuple):
    """Scores of one layer's neurons, each (neuron,) float64."""

    sensitivity: Tensor  # absolute
    squared_difference: Tensor  # mean squared activation difference, over images and positions
    relative: Tensor
    activation: Tensor  # mean |output| on clean images
    mean_output: Tensor  # on clean images, with its sign
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
    """Rank neurons by sums over the batches: two passes per batch, plus those of conductance where it is asked for.

    Args:
        patcher: of the network and its layers.
        batches: iterated once.
        rankings: of RANKINGS; conductance is computed only if named.
    """
    sums: dict[str, list[Tensor]] = {}
    samples = 0
    for pairs in batches:
        clean, adversarial = patcher.record(pairs.images), patcher.record(pairs.adversarial)
        samples += len(pairs.labels)
        for name, layer in patcher.layers.items():
            new = _layer_sums(clean.features[name], adversarial.features[name])
            if "conductance" in rankings:
                size = patcher.internal_batch_size
                flow = conductance(patcher.net, layer, *pairs, root=patcher.root, internal_batch_size=size)
                new.append(flow.abs().double().sum(0))  # (batch, neuron) -> (neuron,)
            sums[name] = [old + more for old, more in zip(sums[name], new, strict=True)] if name in sums else new
    return {name: _ranking(parts, samples) for name, parts in sums.items()}


def _layer_sums(clean: Tensor, adversarial: Tensor) -> list[Tensor]:
    """Activation difference, activation, output and squared difference, summed over the batch, (neuron,) float64."""
    difference, activation, _ = sensitivity_sums(clean, adversarial, dtype=torch.float64)
    sums = [difference, activation]
    for values in (clean, (clean - adversarial) ** 2):
        sums.append(values.reshape(*values.shape[:2], -1).mean(2, dtype=torch.float64).sum(0))
    return sums


def _ranking(sums: Sequence[Tensor], samples: int) -> LayerRanking:
    parts = SensitivitySums(sums[0], sums[1], samples)
    activation, output, squared_difference, *further = (values / samples for values in sums[1:])
    return LayerRanking(divide(parts), squared_difference, divide(parts, "relative"), activation, output, *further)


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
