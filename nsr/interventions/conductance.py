"""Conductance (Dhamdhere, Sundararajan and Yan 2019), computed by captum, as a further ranking of neurons.

    Cond_m(x) = sum over positions p of  integral over a in [0, 1] of  df(x_a)/dF_mp * dF_mp(x_a)/da
    x_a = x + a (x' - x)

It is the part of the change of the label's logit f, from the clean image x to the adversarial one x', that flows
through neuron m. Over the neurons of a layer that no shortcut bypasses it sums to that change. A neuron's score is the
mean over images of |Cond_m|.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nsr.errors import InputError
from nsr.layers import Layer, name_and_call, named_modules
from nsr.modes import frozen_parameters, full_precision, network_mode

STEPS = 20  # of the integral


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
    layer_conductance = _captum().LayerConductance(net, named_modules(root or net)[name])
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        frozen_parameters(net),
        network_mode(net, "eval"),
        full_precision(images.device),
    ):
        flow = layer_conductance.attribute(
            adversarial.clone(),
            images.clone(),
            target=labels,
            n_steps=STEPS,
            method="riemann_trapezoid",
            internal_batch_size=None if internal_batch_size is None else max(internal_batch_size, len(images)),
        )
    flow = flow[0] if isinstance(flow, tuple) else flow
    return flow.detach().movedim(layer.neuron_dim, 1).flatten(2).sum(2) if flow.ndim > 2 else flow.detach()


def _captum() -> Any:
    try:
        import captum.attr
    except ImportError:
        raise InputError("rankings has conductance, which needs captum: pip install captum, or leave it out") from None
    return captum.attr
