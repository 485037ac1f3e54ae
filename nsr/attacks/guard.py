"""A wrapper that makes any attack safe: the network and all random states are restored, the result is validated."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Generator, Tensor, nn

from nsr.attacks.balls import BALLS, distance
from nsr.errors import InputError, callable_name, check_choice, check_epsilon, named_arguments
from nsr.losses import precise
from nsr.modes import network_mode, unchanged_buffers
from nsr.randomness import Generators, draw_seed, seeded

Attack = Callable[..., Tensor]  # (net, images, labels) -> images, and optionally generator=


def guarded(attack: Attack, *, norm: str = "linf", epsilon: float | str | None, seed: int = 0) -> Any:
    """The attack inside a `GuardedAttack`; unchanged where its `restores_network` is True.

    Args:
        attack: (net, images, labels) -> images. Where its signature names `generator`, it gets the one of the call,
            and for a sequence (one for each image) one made from the first image's; the sequence itself only where
            its `draws_per_image` is True.
        norm, epsilon: the threat model, for an attack without such attributes of its own; epsilon None: unbounded.
        seed: of the attack's draws, together with the generator of the call.

    Errors:
        InputError: the attack is not callable; a norm or epsilon out of range.
    """
    return attack if getattr(attack, "restores_network", False) else GuardedAttack(attack, norm, epsilon, seed)


class AttackWrapper:
    """Base class of attacks that call another one and leave the network as it was."""

    restores_network = True
    attack: Any

    def __copy__(self) -> AttackWrapper:
        """Return a wrapper with a copy of the inner attack, whose settings a ramp changes."""
        made = object.__new__(type(self))
        made.__dict__ = {**self.__dict__, "attack": copy(self.attack)}
        return made

    @property
    def draws_per_image(self) -> bool:
        """Whether a sequence of generators, one for each image, makes an image's result independent of its batch."""
        return getattr(self.attack, "draws_per_image", False)

    @property
    def scale(self) -> float:
        """The inner attack's; an AttributeError where it has none, so that it cannot be ramped."""
        return self.attack.scale

    @scale.setter
    def scale(self, scale: float) -> None:
        self.attack.scale = scale


class GuardedAttack(AttackWrapper):
    """A third-party attack in eval mode, without side effects, its images checked: see `guarded`.

    Errors:
        InputError: the result is not a finite tensor of images in [0, 1] within epsilon of the originals.
    """

    def __init__(self, attack: Attack, norm: str, epsilon: float | str | None, seed: int):
        if not callable(attack):
            raise InputError(f"the attack is {attack!r}; it must be a callable (net, images, labels) -> images")
        self.attack, self.seed = attack, seed
        self.norm: str = check_choice("norm", _own(attack, "norm", str, norm), BALLS)
        radius = _own(attack, "epsilon", (int, float, str), epsilon)
        self.epsilon = None if radius is None else check_epsilon("epsilon", radius, norm=self.norm)
        self.soft_labels: bool = getattr(attack, "soft_labels", True)
        self.title: str = _own(attack, "title", str, callable_name(attack))

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor, *, generator: Generators = None) -> Tensor:
        """Adversarial images, detached, in the shape and dtype of `images`; waits for the device."""
        return self._call(self.attack, self.epsilon, net, images, labels, generator=generator)

    @property
    def nearest(self) -> Attack:
        """The inner attack's `nearest`, guarded at any distance; an AttributeError where it has none."""
        return functools.partial(self._call, self.attack.nearest, None)

    def _call(
        self,
        attack: Attack,
        epsilon: float | None,
        net: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        generator: Generators = None,
    ) -> Tensor:
        each = list(generator) if isinstance(generator, Sequence) else [generator]
        device = images.device if each[0] is None else each[0].device
        # from every one, so that an image's draws do not depend on being the first
        drawn = [torch.randint(2**31, (), generator=one, device=device) for one in each]
        seed = draw_seed(self.seed, int(drawn[0]))
        if isinstance(generator, Sequence) and not self.draws_per_image:
            generator = Generator(device).manual_seed(seed)
        called = attack.forward if isinstance(attack, nn.Module) else attack
        settings = {"generator": generator} if "generator" in named_arguments(called)[0] else {}
        with _seeded(seed, images.device), _restored(net):
            # copies: the attack may write into its arguments, and an evaluation's may be inference tensors
            adversarial = attack(net, images.detach().clone(), labels.clone(), **settings)
            return self._checked(adversarial, images, epsilon)

    def _checked(self, adversarial: Any, images: Tensor, epsilon: float | None) -> Tensor:
        returned = f"the attack {self.title} returned"
        if not isinstance(adversarial, Tensor) or adversarial.shape != images.shape:
            is_tensor = isinstance(adversarial, Tensor)
            got = f"shape {tuple(adversarial.shape)}" if is_tensor else f"a {type(adversarial).__name__}"
            raise InputError(f"{returned} {got}; it must return images {tuple(images.shape)}")
        if not adversarial.is_floating_point():
            raise InputError(f"{returned} {adversarial.dtype}; it must return floats in [0, 1]")
        adversarial = adversarial.detach().to(images.device)
        rounding = 4 * max(torch.finfo(each.dtype).eps for each in (images, adversarial))
        wide = adversarial.to(precise(adversarial))
        far = distance(images.to(wide.dtype), wide, self.norm).max()
        lowest, highest, farthest = torch.stack([*wide.aminmax(), far]).tolist()
        if not (-rounding <= lowest and highest <= 1 + rounding):  # NaN is refused too
            raise InputError(
                f"{returned} pixels from {lowest:.4g} to {highest:.4g}; they must be finite and in [0, 1]: the "
                "normalization is part of the network"
            )
        pixels = {"linf": 1, "l2": images[0].numel() ** 0.5, "l1": images[0].numel()}[self.norm]
        if epsilon is not None and farthest > epsilon * (1 + 1e-4) + rounding * pixels:
            raise InputError(
                f"{returned} images up to {farthest:.4g} from the originals; epsilon is {epsilon:.4g} for "
                f"norm={self.norm}: set the attack's own radius to it (or minimal_norm of a LibraryAttack)"
            )
        return wide.clamp(0, 1).to(images.dtype)


def _own(attack: Any, name: str, kinds: Any, default: Any) -> Any:
    value = getattr(attack, name, None)
    return value if isinstance(value, kinds) else default


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed Python, numpy and torch inside, on the images' device too, and restore their states afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), seeded(seed):
        torch.manual_seed(seed)
        yield


@contextmanager
def _restored(net: nn.Module) -> Iterator[None]:
    """Eval mode, gradients enabled, frozen parameters; everything that `net` holds is restored.

    Parameters with their gradients and flags, buffers, modes, submodules and hooks.
    """
    parameters = [
        (parameter, parameter.detach().clone(), parameter.requires_grad, parameter.grad)
        for parameter in net.parameters()
    ]
    tables = [(table, dict(table)) for module in net.modules() for table in _tables(module)]
    with torch.inference_mode(False), torch.enable_grad(), unchanged_buffers(net), network_mode(net, "eval"):
        try:
            for parameter, *_ in parameters:
                parameter.requires_grad_(False)
                parameter.grad = None
            yield
        finally:
            for table, entries in tables:
                if [*map(id, table.values())] != [*map(id, entries.values())] or [*table] != [*entries]:
                    table.clear()
                    table.update(entries)
            for parameter, value, requires_grad, gradient in parameters:
                parameter.data.copy_(value)
                parameter.requires_grad_(requires_grad)
                parameter.grad = gradient


def _tables(module: nn.Module) -> list[dict[str, Any]]:
    """Return the dicts in which torch keeps a module's parameters, buffers, submodules and hooks."""
    return [value for name, value in vars(module).items() if name.startswith("_") and isinstance(value, dict)]
