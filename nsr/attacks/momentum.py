"""The momentum iterative method, MI-FGSM (Dong et al. 2018), in the package foolbox."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Generator, Tensor, nn

from nsr.errors import check_batch, check_choice, check_epsilon, check_number
from nsr.modes import frozen_parameters, network_mode


class Momentum:
    """foolbox's momentum iterative method, its gradients normalized as in the paper.

    Args:
        epsilon: radius in pixel units.
        norm: 'linf' or 'l2'.
        steps: of size epsilon / steps, as in the paper.
        momentum: decay of the gradients' running sum.
    """

    restores_network = True
    soft_labels = False

    def __init__(self, *, epsilon: float | str, norm: str = "linf", steps: int = 40, momentum: float = 1.0):
        self.norm = check_choice("norm", norm, ("linf", "l2"))
        self.epsilon = check_epsilon("epsilon", epsilon, norm=norm)
        self.steps = check_number("steps", steps, lowest=1, whole=True)
        self.momentum = check_number("momentum", momentum, lowest=0)

    @property
    def title(self) -> str:
        return f"MI-FGSM-{self.steps}"

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
    """foolbox and its momentum methods, with each gradient at length 1 in L1 before it is summed.

    That is equation 6 of the paper; foolbox sums their signs, or in L2 their directions.
    """
    with warnings.catch_warnings():  # of foolbox's own imports
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
