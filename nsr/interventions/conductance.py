"""Conductance as a further ranking of neurons, by captum.

    Cond_m(x) = sum over positions p of  integral over a in [0, 1] of  df(x_a)/dF_mp * dF_mp(x_a)/da
    x_a = x + a (x' - x)

(Dhamdhere, Sundararajan and Yan 2019): what of the change of the label's logit f from the clean image x to the
adversarial one x' flows through neuron m. Over the neurons of a layer that nothing passes by it sums to that change. A
neuron's score is the mean over images of |Cond_m|.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nsr.errors import InputError
from nsr.layers import Layer, name_and_call, named_modules
from nsr.modes import frozen_parameters, full_precision, network_mode

STEPS = 20  # of the integral; captum's own points, Gauss and Legendre's, leave out the ends of the way


def conductance(
    net: nn.Module,
    layer: Layer,
    images: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    *,
    within: nn.Module | None = None,
    images_at_once: int | None = None,
) -> Tensor:
    """Each image's conductance through each neuron of one layer.

    Args:
        net: images -> logits.
        layer: of `find_layers`; its module must be called once in a pass.
        images, adversarial: (batch, ...), from and to.
        labels: (batch,).
        within: the part of `net` that the layer's name refers to.
        images_at_once: points of the integral, times images, in one pass; at least the batch.

    Returns:
        (batch, neuron).

    Errors:
        InputError: captum is not installed, or the layer is a later call of a module that is called again.
    """
    name, which = name_and_call(layer.name)
    if which is not None:
        raise InputError(
            f"rankings has conductance, which captum does not know of a module's further call {layer.name}"
        )
    of_layer = _captum().LayerConductance(net, named_modules(within or net)[name])
    at_once = None if images_at_once is None else max(images_at_once, len(images))
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        frozen_parameters(net),
        network_mode(net, "eval"),
        full_precision(images.device),
    ):
        flow = of_layer.attribute(
            adversarial.clone(),
            images.clone(),
            target=labels,
            n_steps=STEPS,
            method="riemann_trapezoid",
            internal_batch_size=at_once,
        )
    flow = flow[0] if isinstance(flow, tuple) else flow
    return flow.detach().movedim(layer.neuron_dim, 1).flatten(2).sum(2) if flow.ndim > 2 else flow.detach()


def _captum() -> Any:
    try:
        import captum.attr
    except ImportError:
        raise InputError(
            "rankings has conductance, which needs captum: pip install 'nsr[attribution]', or leave it out"
        ) from None
    return captum.attr
