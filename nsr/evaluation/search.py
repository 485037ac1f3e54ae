"""Attacks of a test search with faster passes; the network as written decides which images have fallen.

BatchNorm is folded into the layer before it, PGD drops an image from its batch once an iterate fools the network, and
`evaluation.precision=bf16` computes the passes in bfloat16. An image counts as fallen only where the network as written
misclassifies it. One that only the search misclassifies is attacked again as written: its rounding hides no success.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from nsr.attacks.balls import distance
from nsr.attacks.folding import FoldedPair, folded_batch_norm
from nsr.attacks.gradient import GradientAttack
from nsr.errors import check_finite_logits
from nsr.evaluation.masking_checks import nondeterministic
from nsr.losses import margin
from nsr.randomness import seeded

PRECISIONS = ("float32", "bf16")
DRAWN_ON = 8  # images of each batch on which passes are compared

# of a batch, (image,): correct, prediction, margin, distance; logits (image, class); or sums (neuron,)
Result = dict[str, Tensor]


@dataclass(frozen=True)
class Search:
    """How attacks search.

    Args:
        pairs: of layers to fold, from `nsr.attacks.folding.foldable_pairs`.
        stop_early: whether PGD drops fooled images, see `GradientAttack`.
        precision: 'float32' or 'bf16', of the network's passes; the attack's own arithmetic keeps the images' dtype.
    """

    pairs: Sequence[FoldedPair] = ()
    stop_early: bool = True
    precision: str = "float32"

    def __call__(self, attack: Any) -> Any:
        """Return the attack as it searches."""
        if self.stop_early and isinstance(attack, GradientAttack) and attack.steps > 1 and attack.batch_norm == "eval":
            attack = copy.copy(attack)
            attack.keep_best = attack.stop_early = True
        return attack

    @contextmanager
    def passes(self, net: nn.Module) -> Iterator[None]:
        """Run the passes of `net` inside as the search does; no pass inside gives gradients of the weights."""
        precision = _lower_precision(net) if self.precision == "bf16" else nullcontext()
        with folded_batch_norm(self.pairs), precision:
            yield


@contextmanager
def _lower_precision(net: Any) -> Iterator[None]:
    """Run the passes of `net` inside under autocast to bfloat16; the logits are float32."""
    forward: Callable[..., Tensor] = net.forward
    before = vars(net).get("forward")

    def call(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            return forward(images).float()

    net.forward = call
    try:
        yield
    finally:
        del net.forward
        if before is not None:
            net.forward = before


class Batch(NamedTuple):
    """A batch of images on the device, and what the measurements of it have in common."""

    net: nn.Module
    images: Tensor  # (image, channel, height, width)
    labels: Tensor  # (image,)
    places: Tensor  # (image,): index in the whole test set
    generators: Callable[[], list[Generator]]  # one for each image, anew for each measurement
    search: Search | None  # None: attacks search as written

    def chosen(self, places: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
        """Return the network, and images and labels at `places` (image,) of the batch."""
        return self.net, self.images[places], self.labels[places]


def classify(net: nn.Module, images: Tensor, labels: Tensor, places: Tensor) -> Result:
    """Classify images (image, channel, height, width), `places` (image,) their indices in the test set."""
    with torch.no_grad():
        logits = net(images)
    check_finite_logits(logits, places=places)
    prediction = logits.argmax(1)
    # the margin loss is what an attack ascends: the largest other logit minus the label's
    margins = -margin(logits, labels).float()
    return {"correct": prediction == labels, "prediction": prediction, "logits": logits, "margin": margins}


def attack_batch(attack: Any, batch: Batch, clean: Result) -> Result:
    """Attack the images that are classified correctly without an attack; the others keep their clean result."""
    chosen = clean["correct"].nonzero()[:, 0]
    result = {key: values.clone() for key, values in clean.items()}
    if hasattr(attack, "nearest"):
        result["distance"] = torch.zeros(len(batch.labels), device=batch.images.device)
    if batch.search is not None and len(chosen):
        chosen = _attack_images(attack, batch, chosen, result, search=batch.search)
    if len(chosen):
        _attack_images(attack, batch, chosen, result, search=None)
    return result


def _attack_images(attack: Any, batch: Batch, chosen: Tensor, result: Result, *, search: Search | None) -> Tensor:
    """Attack the images `chosen` and write their part of `result`.

    Returns:
        those of them that the search takes for misclassified and the network as written does not.
    """
    attack = attack if search is None else search(attack)
    nearest, every = getattr(attack, "nearest", None), batch.generators()
    net, images, labels = batch.chosen(chosen)
    generators = [every[place] for place in chosen.tolist()]
    taken = torch.zeros_like(labels, dtype=torch.bool)
    with nullcontext() if search is None else search.passes(net):
        adversarial = (nearest or attack)(net, images, labels, generator=generators)
        if search is not None:
            with torch.no_grad():
                taken = net(adversarial).argmax(1) != labels
    found = classify(net, adversarial, labels, batch.places[chosen])
    unconfirmed = chosen[taken & found["correct"]]
    if nearest is not None:
        far = distance(images, adversarial, attack.norm).float().masked_fill(found["correct"], torch.inf)
        result["distance"][chosen] = far
        is_near = far <= attack.epsilon  # within the threat model
        chosen, found = chosen[is_near], {key: values[is_near] for key, values in found.items()}
    for key in result.keys() & found.keys():
        result[key][chosen] = found[key].to(result[key].dtype)
    return unconfirmed


def draws(net: nn.Module, images: Tensor, labels: Tensor) -> bool:
    """Return whether the passes of a network differ; its draws leave no trace."""
    with seeded(0):
        return bool(nondeterministic(net, images[:DRAWN_ON], labels[:DRAWN_ON], generator=Generator()).any())
