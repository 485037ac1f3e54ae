"""Sensitive neuron stabilizing (SNS): a loss term on the activation difference of the most sensitive neurons.

    weight * mean over layers of  mean over that layer's most sensitive neurons of  absolute(l, m)

is added to any objective. Source: Zhang et al., IEEE TIP 30:1291-1304, 2021; what the paper's abstract leaves open is
a setting, see the arguments and docs/stabilizer.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, distributed, nn

from nsr.errors import (
    InputError,
    callable_name,
    check_amount,
    check_choice,
    check_layers,
    check_number,
    named_arguments,
)
from nsr.layers.names import matching_names
from nsr.losses import margin
from nsr.modes import BATCH_NORM
from nsr.sensitivity import DISTANCES, activation_difference, attribution, largest

REFRESHES = ("batch", "average", "epoch", "once")
RANKED = ("squared_difference", "activation", "attribution")  # by another score than sensitivity
SELECTIONS = ("most_sensitive", "random", "least_sensitive", "all", *RANKED)


class SensitivityStabilizer(nn.Module):
    """The stabilizing term: ({layer: clean features}, {layer: adversarial features}) -> scalar.

    It has no parameters. Its `state_dict` holds the scores that select the neurons: {layer: (neuron,)}, empty for
    refresh='batch'.

    Args:
        weight: of the term in the objective; at 0 the term and every pass that it alone needs are left out.
        top: the stabilized neurons of a layer, a count (int) or a fraction (float), see `most_sensitive`.
        select: which ones: 'most_sensitive', or a control of SNS itself: as many 'random' ones, drawn at every step
            from torch's global stream and the same in all processes; as many of the 'least_sensitive'; 'all'. Or the
            largest by another score: 'squared_difference'; 'activation', the mean |output| on clean images;
            'attribution', the part of the adversarial images' margin that the neuron's change causes (see
            `nsr.sensitivity.attribution`), which costs a backward pass down to the stabilized layers.
        equal_term_size: whether each layer's term is scaled, without gradient, to the value that it has for the most
            sensitive neurons of the batch: another selection then pulls as hard as SNS. A term of 0 stays 0.
        layers: patterns of the hooked layers to stabilize; None: all.
        refresh: the sensitivities that select the neurons. 'batch': those of the current batch; 'average': their
            running average; 'epoch': those last given to `remember`, in training the ones reported after every epoch;
            'once': the first ones given to it, in training those of the network before training (for fine-tuning).
        decay: of the running average, in [0, 1]: average <- decay * average + (1 - decay) * batch.
        distance: of the selected neurons' outputs, 'l1' (sensitivity itself), 'l2', 'squared' or 'cosine', see
            `activation_difference`.
        reduction: 'mean' over neurons and layers, or 'sum' over both.
        gradient_through_clean: whether the clean features carry a gradient too.
        batch_norm: mode of BatchNorm in a pass that only this term needs, see `batch_norm_mode`.
        neuron_dim: the axis of the neurons; only features that no FeatureExtractor gave have another than 1.

    Errors:
        InputError: a setting out of range; layers that differ between the two views, or that no pattern matches;
            'epoch' or 'once' before `remember`, or with a score that is not sensitivity; 'cosine' for a layer whose
            neurons have one value; 'attribution' without logits, or for features that they do not depend on.
    """

    def __init__(
        self,
        *,
        weight: float = 1.0,
        top: int | float = 0.1,
        select: str = "most_sensitive",
        equal_term_size: bool = False,
        layers: str | Sequence[str] | None = None,
        refresh: str = "batch",
        decay: float = 0.9,
        distance: str = "l1",
        reduction: str = "mean",
        gradient_through_clean: bool = True,
        batch_norm: str = "batch",
        neuron_dim: int = 1,
    ):
        super().__init__()
        self.weight = check_number("stabilizer.weight", weight, lowest=0)
        self.top = check_amount("stabilizer.top", top)
        self.select = check_choice("stabilizer.select", select, SELECTIONS)
        self.equal_term_size = check_choice("stabilizer.equal_term_size", equal_term_size, (True, False))
        self.layers = None if layers is None else check_layers("stabilizer.layers", layers)
        self.refresh = check_choice("stabilizer.refresh", refresh, REFRESHES)
        if self.select in RANKED and self.refresh in ("epoch", "once"):
            raise InputError(
                f"stabilizer.select is {self.select!r} and refresh {self.refresh!r}, which selects by the reported "
                "sensitivities; set stabilizer.refresh=batch or average"
            )
        self.decay = check_number("stabilizer.decay", decay, lowest=0, highest=1)
        self.distance = check_choice("stabilizer.distance", distance, DISTANCES)
        self.reduction = check_choice("stabilizer.reduction", reduction, ("mean", "sum"))
        self.gradient_through_clean = check_choice(
            "stabilizer.gradient_through_clean", gradient_through_clean, (True, False)
        )
        self.batch_norm = check_choice("stabilizer.batch_norm", batch_norm, BATCH_NORM)
        self.neuron_dim = neuron_dim
        self.scale = 1.0  # factor of the weight, which a ramp changes
        self.scores: dict[str, Tensor] = {}  # {layer: (neuron,)} that select, where the current batch does not

    def forward(
        self,
        clean: Mapping[str, Tensor],
        adversarial: Mapping[str, Tensor],
        adversarial_logits: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return the weighted term, a scalar.

        Args:
            clean, adversarial: {layer: features} of the two views of the same images, (batch, neuron, ...) each.
            adversarial_logits, labels: (batch, class) of the adversarial pass and (batch,) or (batch, class); only
                select='attribution' needs them.
        """
        if list(clean) != list(adversarial):
            raise InputError(
                f"clean features are of the layers {', '.join(clean)}, adversarial ones of {', '.join(adversarial)}; "
                "they must be the same layers in the same order"
            )
        names = self.stabilized(list(clean))
        clean, adversarial = ({name: view[name] for name in names} for view in (clean, adversarial))
        self.check_features(clean)
        samples = len(clean[names[0]])
        differences = self._differences(clean, adversarial, "l1")
        sensitivities = {name: values.detach() for name, values in differences.items()}
        scores = self._scores(
            self._ranked(clean, adversarial, adversarial_logits, labels) if self.select in RANKED else sensitivities,
            samples=samples,
        )
        by_sensitivity = scores
        if self.equal_term_size and self.select in RANKED:
            by_sensitivity = over_processes(sensitivities, samples)
        if self.distance != "l1":
            differences = self._differences(clean, adversarial, self.distance)
        reduce = torch.mean if self.reduction == "mean" else torch.sum
        ids = self._selected(scores, samples=samples)
        terms = []
        for name in names:
            term = reduce(differences[name][ids[name]])
            if self.equal_term_size:
                wanted = reduce(differences[name][largest(by_sensitivity[name], self.top)]).detach()
                term = term * torch.where(term == 0, 1, wanted / term.detach())
            terms.append(term)
        return self.weight * self.scale * reduce(torch.stack(terms))

    def _differences(
        self, clean: Mapping[str, Tensor], adversarial: Mapping[str, Tensor], distance: str
    ) -> dict[str, Tensor]:
        """Return the activation differences, {layer: (neuron,)}."""
        differences = {}
        for name, features in clean.items():
            features = features if self.gradient_through_clean else features.detach()
            differences[name] = activation_difference(
                features, adversarial[name], distance=distance, neuron_dim=self.neuron_dim
            )
        return differences

    @torch.no_grad()
    def _ranked(
        self,
        clean: Mapping[str, Tensor],
        adversarial: Mapping[str, Tensor],
        logits: Tensor | None,
        labels: Tensor | None,
    ) -> dict[str, Tensor]:
        """Return the batch's scores of a selection of RANKED, {layer: (neuron,)}."""
        axis = self.neuron_dim
        if self.select == "squared_difference":
            return self._differences(clean, adversarial, "squared")
        if self.select == "activation":  # the distance to 0
            zeros = {name: torch.zeros_like(features) for name, features in clean.items()}
            return self._differences(clean, zeros, "l1")
        slopes = self._slopes(adversarial, logits, labels)
        return {
            name: attribution(features, adversarial[name], slopes[name], neuron_dim=axis).mean(0)
            for name, features in clean.items()
        }

    def _slopes(
        self, features: Mapping[str, Tensor], logits: Tensor | None, labels: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the gradient of each image's margin by its features, {layer: of their shape}."""
        if logits is None or labels is None:
            raise InputError(
                "stabilizer.select is 'attribution', which needs adversarial_logits and labels; pass them, or take "
                "another selection"
            )
        classes = labels.argmax(1) if labels.is_floating_point() else labels
        found: Sequence[Tensor | None] = [None] * len(features)
        if all(values.requires_grad for values in features.values()):
            with torch.enable_grad():
                margins = margin(logits, classes).sum()
            found = torch.autograd.grad(margins, list(features.values()), retain_graph=True, allow_unused=True)
        slopes = {name: slope for name, slope in zip(features, found, strict=True) if slope is not None}
        if missing := [name for name in features if name not in slopes]:
            raise InputError(
                f"stabilizer.select is 'attribution', but the logits do not depend on the captured features of "
                f"{missing[0]}: they are frozen, a copy (something writes into them later), or have their neurons on "
                "another axis than 1; name other layers in stabilizer.layers, or take another selection"
            )
        return slopes

    def remember(self, sensitivities: Mapping[str, Tensor]) -> None:
        """Select by {layer: (neuron,)} from now on, if `refresh` is 'epoch', or 'once' and these are the first."""
        if self.refresh == "epoch" or (self.refresh == "once" and not self.scores):
            self.scores = {name: values.detach().clone() for name, values in sensitivities.items()}

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return the scores, for `state_dict`."""
        return dict(self.scores)

    def set_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the scores from a `state_dict`."""
        self.scores = dict(state)

    def extra_repr(self) -> str:
        settings = ("weight", "top", "select", "layers", "refresh", "distance", "reduction")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in settings)

    def check_features(
        self, features: Mapping[str, Tensor], logits: Tensor | None = None, labels: Tensor | None = None
    ) -> None:
        """Raise InputError where distance or selection is not defined for {layer: (batch, neuron, ...)} of a pass."""
        for name, values in features.items():
            if self.distance == "cosine" and values.ndim == 2:
                raise InputError(
                    f"stabilizer.distance is 'cosine', but a neuron of {name} has one value, which has no direction; "
                    "name feature maps in stabilizer.layers, or take l1 or l2"
                )
        if self.select == "attribution" and logits is not None:
            self._slopes(features, logits, labels)

    def stabilized(self, captured: Sequence[str]) -> list[str]:
        """Return the captured layers that the term stabilizes."""
        if not captured:
            raise InputError("no layer is captured, so there is nothing to stabilize; see layers")
        return matching_names("stabilizer.layers", self.layers, captured)

    def _selected(self, scores: Mapping[str, Tensor], *, samples: int) -> dict[str, Tensor]:
        """Return {layer: (k,) ids of the stabilized neurons}."""
        if self.select == "random":
            drawn = {name: torch.rand(len(values)).to(values.device) for name, values in scores.items()}
            scores = over_processes(drawn, samples)
        if self.select in ("random", "most_sensitive", *RANKED):
            return {name: largest(values, self.top) for name, values in scores.items()}
        orders = {name: largest(values, 1.0) for name, values in scores.items()}
        if self.select == "all":
            return orders
        return {name: order[-len(largest(scores[name], self.top)) :] for name, order in orders.items()}

    def _scores(self, of_batch: dict[str, Tensor], *, samples: int) -> Mapping[str, Tensor]:
        """Return {layer: (neuron,)} that select, from those of the batch in this process."""
        if self.refresh in ("epoch", "once"):
            if missing := [name for name in of_batch if name not in self.scores]:
                raise InputError(
                    f"stabilizer.refresh is {self.refresh!r}, but no sensitivities of {', '.join(missing)} were given; "
                    "call remember first"
                )
            return {name: self.scores[name].to(values.device) for name, values in of_batch.items()}
        batch = over_processes(of_batch, samples)
        if self.refresh == "average":
            if self.scores:
                before = {name: self.scores[name].to(values) for name, values in batch.items()}
                batch = {name: torch.lerp(values, before[name], self.decay) for name, values in batch.items()}
            self.scores = batch
        return batch


def stabilizing_term(
    stabilizer: Callable[..., Tensor],
    clean: Mapping[str, Tensor],
    adversarial: Mapping[str, Tensor],
    *,
    adversarial_logits: Tensor,
    labels: Tensor,
) -> Tensor:
    """Call a stabilizer; it gets logits (batch, class) and labels where its signature names them.

    Errors:
        InputError: the result is not a scalar tensor.
    """
    names, _ = named_arguments(stabilizer.forward if isinstance(stabilizer, nn.Module) else stabilizer)
    offered = {"adversarial_logits": adversarial_logits, "labels": labels}
    term = stabilizer(clean, adversarial, **{name: value for name, value in offered.items() if name in names})
    if not isinstance(term, Tensor) or term.numel() != 1:
        got = f"a tensor of shape {tuple(term.shape)}" if isinstance(term, Tensor) else repr(term)[:80]
        raise InputError(f"the stabilizer {callable_name(stabilizer)} returned {got}; it must return a scalar tensor")
    return term.reshape(())


def over_processes(sensitivities: dict[str, Tensor], samples: int) -> dict[str, Tensor]:
    """Return the sensitivities of the batches of all processes together; one flat tensor is exchanged."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return sensitivities
    flat = torch.cat([*sensitivities.values(), next(iter(sensitivities.values())).new_ones(1)]) * samples
    distributed.all_reduce(flat)
    widths = [len(values) for values in sensitivities.values()]
    return dict(zip(sensitivities, (flat[:-1] / flat[-1]).split(widths), strict=True))
