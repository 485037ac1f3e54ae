"""One adapter for the attacks of torchattacks, foolbox and adv-lib: (net, images, labels) -> images."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from nsr.attacks.balls import BALLS
from nsr.attacks.minimum_norm import fooling, within
from nsr.errors import InputError, callable_name, check_choice, check_epsilon, unwrapped


class LibraryAttack:
    """An attack of another library; `guarded` restores the network around it and checks its images.

    Args:
        attack: a class of torchattacks, or a partial of one with its settings (called as attack(net)(images, labels));
            an object of foolbox (called with a PyTorchModel, images, labels and epsilons=epsilon); a function such as
            those of adv-lib, or a partial of one (called as attack(net, images, labels)).
        norm, epsilon: the threat model. foolbox takes epsilon from here; torchattacks and adv-lib from their own
            settings, which must agree with it.
        minimal_norm: True for an attack that searches the nearest adversarial example (CW, DeepFool): one beyond
            epsilon is a failure, for which the clean image is returned; `nearest` returns it all the same.

    Errors:
        InputError: not a callable, a setting out of range, an attack of foolbox or of minimal norm without epsilon.
    """

    restores_network = False
    soft_labels = False

    def __init__(
        self,
        attack: Callable[..., Any],
        *,
        norm: str = "linf",
        epsilon: float | str | None = None,
        minimal_norm: bool = False,
    ):
        if not callable(attack):
            raise InputError(f"attack is {attack!r}; it must be a class, an object or a function of an attack library")
        self.norm = check_choice("norm", norm, BALLS)
        self.epsilon = None if epsilon is None else check_epsilon("epsilon", epsilon, norm=norm)
        base = getattr(sys.modules.get("foolbox.attacks.base"), "Attack", ())  # loaded where the attack is one of its
        if inspect.isclass(unwrapped(attack)) and issubclass(unwrapped(attack), base):
            attack = attack()
        self.attack, self._is_foolbox = attack, isinstance(attack, base)
        self.minimal_norm = check_choice("minimal_norm", minimal_norm, (True, False))
        if (self._is_foolbox or minimal_norm) and self.epsilon is None:
            raise InputError(f"epsilon is None; the attack {self.title} needs it, e.g. epsilon=8/255")

    @property
    def title(self) -> str:
        kind = unwrapped(self.attack)
        module = kind.__module__ if hasattr(kind, "__name__") else type(kind).__module__
        return f"{callable_name(kind)} ({module.partition('.')[0]})"

    @property
    def nearest(self) -> Callable[..., Tensor]:
        """`nearest(net, images, labels)` of an attack of minimal norm; an AttributeError where it is none."""
        if not self.minimal_norm:
            raise AttributeError("nearest")
        return self._nearest

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The adversarial images as the library returns them."""
        found = self._found(net, images, labels)
        # LibraryAttack refuses a minimal norm without epsilon
        return within(found.detach(), images, self.norm, self.epsilon) if self.minimal_norm else found  # type: ignore[arg-type]

    def _nearest(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return fooling(net, self._found(net, images, labels).detach(), images, labels)

    def _found(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        if self._is_foolbox:
            import foolbox

            model = foolbox.PyTorchModel(net, bounds=(0, 1), device=images.device)
            epsilon = None if self.minimal_norm else self.epsilon
            return self.attack(model, images, labels, epsilons=epsilon)[1]  # (raw, clipped, success)
        if inspect.isclass(unwrapped(self.attack)):
            return self.attack(net)(images, labels)
        return self.attack(net, images, labels)
