"""Attacks of kept libraries behind one shape: attack(net, images, labels, generator=...) -> images.

AutoAttack and its parts are pyautoattack's (Croce and Hein 2020), momentum's is foolbox's (Dong et al. 2018).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from nsr.errors import InputError, check_batch, check_choice, check_epsilon, check_number
from nsr.modes import frozen_parameters, network_mode

VERSIONS = ("standard", "plus", "rand", "custom")
PARTS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}

log = logging.getLogger(__name__)


class AutoAttack:
    """pyautoattack's AutoAttack (Croce and Hein 2020), or some of its attacks.

    Standard AutoAttack aims at nine targets and so needs ten classes; with fewer, the same four attacks run with as
    many targets as there are, which is said.

    Args:
        epsilon: radius in pixel units.
        norm: 'linf', 'l2' or 'l1'.
        version: 'standard', 'plus', 'rand' (for networks that draw) or 'custom'.
        attacks: of 'custom': some of apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square.
        restarts: of APGD in 'custom'.
        queries: of Square in 'custom'.
        seed: of every draw; each batch of images begins with it anew, as a batch of the original does.

    Errors:
        InputError: a setting out of range; attacks without 'custom', or 'custom' without.
    """

    def __init__(
        self,
        *,
        epsilon: float | str,
        norm: str = "linf",
        version: str = "standard",
        attacks: Sequence[str] | None = None,
        restarts: int = 1,
        queries: int = 5000,
        seed: int = 0,
    ):
        self.norm = check_choice("norm", norm, NORMS)
        self.epsilon = check_epsilon("epsilon", epsilon, norm=norm)
        self.version = check_choice("version", version, VERSIONS)
        if (version == "custom") != bool(attacks):
            raise InputError(
                f"attacks is {attacks!r} and version {version!r}; attacks belong to version 'custom' alone"
            )
        self.attacks = [check_choice("attacks entry", attack, PARTS) for attack in attacks or ()]
        self.restarts = check_number("restarts", restarts, lowest=1, whole=True)
        self.queries = check_number("queries", queries, lowest=1, whole=True)
        self.seed = check_number("seed", seed, lowest=0, whole=True)
        self._said = False

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Adversarial images, those of the images that no attack fooled as they were; `generator` is not drawn from."""
        from pyautoattack import AutoAttack as Original

        check_batch(images, labels)
        if self.epsilon == 0:
            return images.clone()
        devices = [images.device] if images.device.type == "cuda" else []
        with torch.random.fork_rng(devices), network_mode(net, "eval"), frozen_parameters(net), torch.enable_grad():
            with torch.no_grad():
                classes = net(images[:1]).shape[1]
            version, attacks = self._for_classes(classes)
            original = Original(
                net,
                norm=NORMS[self.norm],
                eps=self.epsilon,
                seed=self.seed,
                version=version,
                attacks=attacks,
                device=images.device,
            )
            if version == "custom":
                original.apgd.n_restarts = self.restarts
                original.square.n_queries = self.queries
            targets = min(9, classes - 1)
            original.apgd_targeted.n_target_classes = min(original.apgd_targeted.n_target_classes, targets)
            original.fab.n_target_classes = min(original.fab.n_target_classes, targets)
            if version == "custom" and self.version == "standard":
                original.fab.n_restarts = 1
            adversarial, _ = original.run_standard_evaluation(images, labels, batch_size=len(images))
        return adversarial.detach()

    def _for_classes(self, classes: int) -> tuple[str, list[str] | None]:
        if self.version == "custom":
            return "custom", self.attacks
        if self.version != "standard" or classes >= 10:
            return self.version, None
        if not self._said:
            log.warning(
                "standard AutoAttack needs ten classes; with %d its attacks take %d targets", classes, classes - 1
            )
            self._said = True
        return "custom", ["apgd-ce", "apgd-t", "fab-t", "square"]


class Momentum:
    """The momentum iterative method (Dong et al. 2018), foolbox's.

    Args:
        epsilon: radius in pixel units.
        norm: 'linf' or 'l2'.
        steps: of size epsilon / steps, as in the paper.
        momentum: decay of the gradients' running sum.
    """

    def __init__(self, *, epsilon: float | str, norm: str = "linf", steps: int = 40, momentum: float = 1.0):
        self.norm = check_choice("norm", norm, ("linf", "l2"))
        self.epsilon = check_epsilon("epsilon", epsilon, norm=norm)
        self.steps = check_number("steps", steps, lowest=1, whole=True)
        self.momentum = check_number("momentum", momentum, lowest=0)

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Adversarial images; nothing is drawn."""
        check_batch(images, labels)
        if self.epsilon == 0:
            return images.clone()
        foolbox, kinds = _momentum_attacks()
        attack = kinds[self.norm](
            momentum=self.momentum, steps=self.steps, rel_stepsize=1 / self.steps, random_start=False
        )
        with network_mode(net, "eval"), frozen_parameters(net), torch.enable_grad():
            bounded = foolbox.PyTorchModel(net, bounds=(0, 1), device=images.device)
            adversarial, _, _ = attack(bounded, images, labels, epsilons=self.epsilon)
        return adversarial.detach()


def _momentum_attacks() -> tuple[Any, dict[str, Any]]:
    """foolbox and its momentum methods, with each gradient at length 1 in L1 before it is added up.

    That is equation 6 of the paper; foolbox adds up their signs, or in L2 their directions.
    """
    with warnings.catch_warnings():  # of its own imports
        warnings.simplefilter("ignore", DeprecationWarning)
        import foolbox
        from foolbox.attacks.gradient_descent_base import normalize_lp_norms

    class Normalized:
        def normalize(self, gradients: Any, **_: Any) -> Any:
            return normalize_lp_norms(gradients, p=1)

    originals = {
        "linf": foolbox.attacks.LinfMomentumIterativeFastGradientMethod,
        "l2": foolbox.attacks.L2MomentumIterativeFastGradientMethod,
    }
    return foolbox, {norm: type(original.__name__, (Normalized, original), {}) for norm, original in originals.items()}
