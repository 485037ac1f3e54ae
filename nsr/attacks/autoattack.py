"""AutoAttack and its parts (Croce and Hein 2020), in the package pyautoattack."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from nsr.errors import InputError, check_batch, check_choice, check_epsilon, check_number
from nsr.modes import frozen_parameters, network_mode

VERSIONS = ("standard", "plus", "rand", "custom")
PARTS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}

log = logging.getLogger(__name__)


class AutoAttack:
    """pyautoattack's AutoAttack, or some of its attacks.

    Standard AutoAttack aims at nine targets and so needs ten classes; with fewer, the same four attacks run with as
    many targets as there are, which is logged.

    Args:
        epsilon: radius in pixel units.
        norm: 'linf', 'l2' or 'l1'.
        version: 'standard', 'plus', 'rand' (for randomized networks) or 'custom'.
        attacks: of 'custom': some of apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square.
        restarts: of APGD in 'custom'.
        queries: of Square in 'custom'.
        seed: of every draw; each batch of images starts from it, as in the original.

    Errors:
        InputError: a setting out of range; attacks without 'custom', or 'custom' without.
    """

    restores_network = True
    soft_labels = False

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
                f"attacks is {attacks!r} and version {version!r}; version 'custom' needs attacks, the others take none"
            )
        self.attacks = [check_choice("attacks entry", attack, PARTS) for attack in attacks or ()]
        self.restarts = check_number("restarts", restarts, lowest=1, whole=True)
        self.queries = check_number("queries", queries, lowest=1, whole=True)
        self.seed = check_number("seed", seed, lowest=0, whole=True)
        self._logged = False

    @property
    def title(self) -> str:
        return ", ".join(self.attacks) if self.version == "custom" else f"AutoAttack, {self.version}"

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Adversarial images, the clean image where no attack succeeds; `generator` is not drawn from."""
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
        if not self._logged:
            log.warning(
                "standard AutoAttack needs ten classes; with %d its attacks take %d targets", classes, classes - 1
            )
            self._logged = True
        return "custom", ["apgd-ce", "apgd-t", "fab-t", "square"]
