"""Sensitive-neuron stabilising (SNS): hold the most sensitive neurons of each layer still.

    weight * mean over layers of  mean over that layer's most sensitive neurons of  absolute(l, m)

is added to any objective. Source: Zhang et al., IEEE TIP 30:1291-1304, 2021; what the paper's abstract leaves open is
a setting, see the arguments and docs/stabilizer.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, distributed

from nsr.errors import InputError, check_choice, check_number, check_top, did_you_mean
from nsr.layers import as_list, calls_matching
from nsr.modes import BATCH_NORM
from nsr.sensitivity import DISTANCES, most_sensitive, neuron_movement, neuron_sensitivity

REFRESHES = ("batch", "average", "epoch", "once")


class SensitivityStabilizer:
    """The stabilising term over the features of a clean and an adversarial pass.

    Args:
        weight: of the term in the objective; at 0 the term and every pass that it alone needs are left out.
        top: how many of a layer's neurons are stabilised, a count (int) or a fraction (float), see `most_sensitive`.
        layers: patterns of the tapped layers to stabilise; None: all.
        refresh: which sensitivities choose the neurons. 'batch': those of the batch at hand; 'average': a running
            average of them; 'epoch': those last given to `remember`, in training the ones reported after every epoch;
            'once': the first ones given to it, in training those of the network it starts from (for fine-tuning).
        decay: of the running average, in [0, 1): average <- decay * average + (1 - decay) * batch.
        distance: what is held small, of the neurons that sensitivity chose: 'l1' (sensitivity itself), 'l2' or
            'cosine', see `neuron_movement`.
        reduction: 'mean' over neurons and layers, or 'sum' over both.
        gradient_through_clean: whether the clean side is moved too.
        batch_norm: how BatchNorm treats a pass that only this term needs: 'batch' takes the batch's statistics and
            leaves the running ones untouched, 'frozen' takes the running ones, 'update' is an ordinary pass.
        neuron_dim: the neurons' axis; None: 1, and -1 for tokens (batch, token, dim).

    Errors:
        InputError: a setting out of range; layers that differ between the two sides, or that no pattern matches;
            'epoch' or 'once' before `remember`; 'cosine' for a layer whose neurons have one value.
    """

    def __init__(
        self,
        *,
        weight: float = 1.0,
        top: int | float = 0.1,
        layers: str | Sequence[str] | None = None,
        refresh: str = "batch",
        decay: float = 0.9,
        distance: str = "l1",
        reduction: str = "mean",
        gradient_through_clean: bool = True,
        batch_norm: str = "batch",
        neuron_dim: int | None = None,
    ):
        self.weight = check_number("stabilizer.weight", weight, lowest=0)
        self.top = check_top("stabilizer.top", top)
        self.layers = None if layers is None else as_list(layers)
        if self.layers == []:
            raise InputError("stabilizer.layers is []; it must name a layer, or be left out for all")
        self.refresh = check_choice("stabilizer.refresh", refresh, REFRESHES)
        self.decay = check_number("stabilizer.decay", decay, lowest=0, highest=1)
        self.distance = check_choice("stabilizer.distance", distance, DISTANCES)
        self.reduction = check_choice("stabilizer.reduction", reduction, ("mean", "sum"))
        self.gradient_through_clean = check_choice(
            "stabilizer.gradient_through_clean", gradient_through_clean, (True, False)
        )
        self.batch_norm = check_choice("stabilizer.batch_norm", batch_norm, BATCH_NORM)
        self.neuron_dim = neuron_dim
        self.share = 1.0  # of the weight: what a ramp moves
        self.scores: dict[str, Tensor] = {}  # {layer: (neuron,)} that choose, where the batch at hand does not

    def __call__(self, clean: Mapping[str, Tensor], adversarial: Mapping[str, Tensor]) -> Tensor:
        """The weighted term, a scalar, from {layer: features} of the two sides on the same images."""
        if list(clean) != list(adversarial):
            raise InputError(f"the two sides have different layers: {', '.join(clean)} and {', '.join(adversarial)}")
        names = self.stabilized(list(clean))
        self.check_features({name: clean[name] for name in names})
        sides = {
            name: (clean[name] if self.gradient_through_clean else clean[name].detach(), adversarial[name])
            for name in names
        }
        sensitivities = {
            name: neuron_sensitivity(*pair, neuron_dim=self._axis(pair[0])) for name, pair in sides.items()
        }
        scores = self._scores(sensitivities, samples=len(clean[names[0]]))
        terms = []
        for name, pair in sides.items():
            movement = sensitivities[name]  # (neuron,)
            if self.distance != "l1":
                movement = neuron_movement(*pair, distance=self.distance, neuron_dim=self._axis(pair[0]))
            movement = movement[most_sensitive(scores[name], self.top)]
            terms.append(movement.mean() if self.reduction == "mean" else movement.sum())
        term = torch.stack(terms)
        return self.weight * self.share * (term.mean() if self.reduction == "mean" else term.sum())

    def remember(self, sensitivities: Mapping[str, Tensor]) -> None:
        """Takes over {layer: (neuron,)} to choose by, where `refresh` is 'epoch', or 'once' and these are the first."""
        if self.refresh == "epoch" or (self.refresh == "once" and not self.scores):
            self.scores = {name: values.detach().clone() for name, values in sensitivities.items()}

    def check_features(self, features: Mapping[str, Tensor]) -> None:
        """InputError where the distance is not defined for {layer: (batch, neuron, ...)}."""
        for name, values in features.items():
            if self.distance == "cosine" and values.ndim == 2:
                raise InputError(
                    f"stabilizer.distance is 'cosine', but a neuron of {name} has one value, which has no direction; "
                    "name feature maps in stabilizer.layers, or take l1 or l2"
                )

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

    def _axis(self, features: Tensor) -> int:
        return self.neuron_dim if self.neuron_dim is not None else -1 if features.ndim == 3 else 1

    def _scores(self, sensitivities: Mapping[str, Tensor], *, samples: int) -> Mapping[str, Tensor]:
        """{layer: (neuron,)} that the most sensitive neurons are chosen by; no gradient."""
        if self.refresh in ("epoch", "once"):
            missing = [name for name in sensitivities if name not in self.scores]
            if missing:
                raise InputError(
                    f"stabilizer.refresh is {self.refresh!r}, but no sensitivities of {', '.join(missing)} were given; "
                    "call remember first"
                )
            return {name: self.scores[name].to(values.device) for name, values in sensitivities.items()}
        batch = over_processes({name: values.detach() for name, values in sensitivities.items()}, samples)
        if self.refresh == "average":
            if self.scores:
                batch = {
                    name: torch.lerp(values, self.scores[name].to(values), self.decay) for name, values in batch.items()
                }
            self.scores = batch
        return batch


def over_processes(sensitivities: dict[str, Tensor], samples: int) -> dict[str, Tensor]:
    """The sensitivities of the batch of all processes together: one flat tensor is exchanged."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return sensitivities
    flat = torch.cat([*sensitivities.values(), next(iter(sensitivities.values())).new_ones(1)]) * samples
    distributed.all_reduce(flat)
    widths = [len(values) for values in sensitivities.values()]
    return dict(zip(sensitivities, (flat[:-1] / flat[-1]).split(widths), strict=True))
