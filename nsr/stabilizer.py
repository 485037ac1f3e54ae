"""Sensitive-neuron stabilising (SNS): hold the most sensitive neurons of each layer still.

    weight * mean over layers of  mean over that layer's most sensitive neurons of  absolute(l, m)

is added to any objective. Source: Zhang et al., IEEE TIP 30:1291-1304, 2021; what the paper's abstract leaves open is
a setting, see the arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nsr.errors import InputError, check_choice, check_number, check_top, did_you_mean
from nsr.layers import as_list, calls_matching
from nsr.modes import BATCH_NORM
from nsr.sensitivity import most_sensitive, neuron_sensitivity


class SensitivityStabilizer:
    """The stabilising term over the features of a clean and an adversarial pass.

    Args:
        weight: of the term in the objective; at 0 the term and every pass that it alone needs are left out.
        top: how many of a layer's neurons are stabilised, a count (int) or a fraction (float), see `most_sensitive`.
        layers: patterns of the tapped layers to stabilise; None: all.
        gradient_through_clean: whether the clean side is moved too (measured: better; without it digits lost a point).
        batch_norm: how BatchNorm treats a pass that only this term needs: 'batch' takes the batch's statistics and
            leaves the running ones untouched, 'frozen' takes the running ones, 'update' is an ordinary pass.
        neuron_dim: the neurons' axis; None: 1, and -1 for tokens (batch, token, dim).

    Errors:
        InputError: a setting out of range; layers that differ between the two sides, or that no pattern matches.
    """

    def __init__(
        self,
        *,
        weight: float = 2.0,
        top: int | float = 0.3,
        layers: str | Sequence[str] | None = None,
        gradient_through_clean: bool = True,
        batch_norm: str = "batch",
        neuron_dim: int | None = None,
    ):
        self.weight = check_number("stabilizer.weight", weight, lowest=0)
        self.top = check_top("stabilizer.top", top)
        self.layers = None if layers is None else as_list(layers)
        if self.layers == []:
            raise InputError("stabilizer.layers is []; it must name a layer, or be left out for all")
        self.gradient_through_clean = check_choice(
            "stabilizer.gradient_through_clean", gradient_through_clean, (True, False)
        )
        self.batch_norm = check_choice("stabilizer.batch_norm", batch_norm, BATCH_NORM)
        self.neuron_dim = neuron_dim

    def __call__(self, clean: Mapping[str, Tensor], adversarial: Mapping[str, Tensor]) -> Tensor:
        """The weighted term, a scalar, from {layer: features} of the two sides on the same images."""
        if list(clean) != list(adversarial):
            raise InputError(f"the two sides have different layers: {', '.join(clean)} and {', '.join(adversarial)}")
        means = [self._layer_term(clean[layer], adversarial[layer]) for layer in self.stabilized(list(clean))]
        return self.weight * torch.stack(means).mean()

    def _layer_term(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        neuron_dim = self.neuron_dim if self.neuron_dim is not None else -1 if clean.ndim == 3 else 1
        clean = clean if self.gradient_through_clean else clean.detach()
        sensitivity = neuron_sensitivity(clean, adversarial, neuron_dim=neuron_dim)  # (neuron,)
        return sensitivity[most_sensitive(sensitivity, self.top)].mean()

    def stabilized(self, tapped: Sequence[str]) -> list[str]:
        """Those of the tapped layers that the term holds still."""
        if not tapped:
            raise InputError("no layer is tapped, so there is nothing to stabilise; see layers")
        if self.layers is None:
            return list(tapped)
        chosen: set[str] = set()
        for pattern in self.layers:
            matching = calls_matching(pattern, tapped)
            if not matching:
                raise InputError(
                    f"stabilizer.layers: no tapped layer matches {pattern!r}{did_you_mean(pattern, tapped)}; "
                    f"tapped are {', '.join(tapped)}"
                )
            chosen.update(matching)
        return [layer for layer in tapped if layer in chosen]
