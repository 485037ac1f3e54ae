"""Attacks of other packages: AutoAttack and its parts (pyautoattack), the momentum iterative method (foolbox)."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nsr.errors import InputError, check_batch, check_choice, check_epsilon, check_finite_logits, check_number
from nsr.losses import margin
from nsr.modes import frozen_parameters, network_mode
from nsr.randomness import Generators

VERSIONS = ("standard", "plus", "rand", "custom")
PARTS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}  # their names in both packages

log = logging.getLogger(__name__)


class ThirdParty:
    """An attack in eval mode that leaves the network and the random state as they were."""

    restores_network = True
    soft_labels = False

    def __init__(self, epsilon: float | str, norm: str, norms: Iterable[str]):
        self.norm: str = check_choice("norm", norm, norms)
        self.epsilon = check_epsilon("epsilon", epsilon, norm=norm)

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor, *, generator: Generators = None) -> Tensor:
        """Adversarial images within epsilon.

        Args:
            generator: seeds the draws, but for AutoAttack's, the first of a sequence; None: torch's own state, which is
                not advanced.
        """
        check_batch(images, labels)
        check_epsilon("epsilon", self.epsilon, norm=self.norm, pixels=images[0].numel())
        if self.epsilon == 0:
            return images.clone()
        with undisturbed(net, images, generator) as in_float32:
            return self._run(in_float32, images.float().contiguous(), labels).detach().to(images.dtype)

    def _run(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError


@contextmanager
def undisturbed(net: nn.Module, images: Tensor, generator: Generators) -> Iterator[nn.Module]:
    """Eval mode, frozen parameters and draws seeded by `generator`; InputError for logits that are not finite.

    Yields the network as one in float32, which is what both packages compute in.
    """
    first = generator[0] if isinstance(generator, Sequence) else generator
    with torch.no_grad(), network_mode(net, "eval"):
        check_finite_logits(net(images))
    devices = [images.device] if images.device.type == "cuda" else []
    trace = sys.gettrace()
    with torch.random.fork_rng(devices), network_mode(net, "eval"), frozen_parameters(net), torch.enable_grad():
        if first is not None:
            torch.manual_seed(int(torch.randint(2**31, (), generator=first, device=first.device)))
        try:
            yield _InFloat32(net, images.dtype).eval()
        finally:
            sys.settrace(trace)  # pyautoattack ends a debugger's


class _InFloat32(nn.Module):
    """A network that gets images in `dtype` and gives logits in float32."""

    def __init__(self, net: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.net, self.dtype = net, dtype

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images.to(self.dtype))
        return logits.float()


def load_foolbox() -> Any:
    """Return foolbox, imported without the warnings of its own imports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import foolbox
    return foolbox


class AutoAttack(ThirdParty):
    """pyautoattack's AutoAttack (Croce and Hein 2020), or some of its attacks; the clean image where none succeeds.

    With fewer than ten classes its targeted attacks aim at all other classes, and where these are too few for the DLR
    loss, which ranks three logits (targeted: four), APGD ascends the loss's numerator, the margin: both are logged.

    Args:
        epsilon: radius in pixel units.
        norm: 'linf', 'l2' or 'l1'.
        version: 'standard', 'plus', 'rand' (for randomized networks) or 'custom'.
        attacks: of 'custom': some of apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square.
        restarts: of APGD on the cross-entropy and on DLR, None: the version's, 1 in 'custom'.
        queries: of Square, None: 5,000.
        steps: of every APGD, None: 100.
        targets: classes that each targeted attack aims at in turn, None: 9.
        seed: of every draw; each batch of images starts from it, as in the original.

    Errors:
        InputError: a setting out of range; attacks without 'custom'; 'custom' without attacks.
    """

    def __init__(
        self,
        *,
        epsilon: float | str,
        norm: str = "linf",
        version: str = "standard",
        attacks: Sequence[str] | None = None,
        restarts: int | None = None,
        queries: int | None = None,
        steps: int | None = None,
        targets: int | None = None,
        seed: int = 0,
    ):
        super().__init__(epsilon, norm, NORMS)
        self.version = check_choice("version", version, VERSIONS)
        if (version == "custom") != bool(attacks) or attacks == []:
            raise InputError(
                f"attacks is {attacks!r} and version {version!r}; version 'custom' needs attacks, the others take none"
            )
        self.attacks = [check_choice("attacks entry", attack, PARTS) for attack in attacks or ()]
        self.budget = {"restarts": restarts, "queries": queries, "steps": steps, "targets": targets}
        for name, value in self.budget.items():
            if value is not None:
                self.budget[name] = check_number(name, value, lowest=1, whole=True)
        self.seed = check_number("seed", seed, lowest=0, whole=True)
        self._logged = False

    @property
    def title(self) -> str:
        changed = [f"{value} {name}" for name, value in self.budget.items() if value is not None]
        return ", ".join([*(self.attacks or ["AutoAttack", self.version]), *changed])

    @property
    def is_standard(self) -> bool:
        """Whether it is the metric of published tables."""
        return self.version == "standard" and set(self.budget.values()) == {None}

    def _run(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        from pyautoattack import AutoAttack as Original

        with torch.no_grad():
            classes = net(images[:1]).shape[1]
        settings: Any = {"version": self.version, "attacks": self.attacks or None, "seed": self.seed}
        original = Original(net, norm=NORMS[self.norm], eps=self.epsilon, device=images.device, **settings)
        changed = {name: value for name, value in self.budget.items() if value is not None}
        if self.version == "custom" or "restarts" in changed:
            original.apgd.n_restarts = changed.get("restarts", 1)
        original.square.n_queries = changed.get("queries", original.square.n_queries)
        for apgd in (original.apgd, original.apgd_targeted) if "steps" in changed else ():
            apgd.n_iter = changed["steps"]
            checkpoints = {"n_iter_2": 0.22, "n_iter_min": 0.06, "size_decr": 0.03}  # of the steps, section 3.2
            for name, fraction in checkpoints.items():
                setattr(apgd, name, max(int(fraction * apgd.n_iter), 1))
        for targeted in (original.apgd_targeted, original.fab):
            targeted.n_target_classes = changed.get("targets", targeted.n_target_classes)
        changes = _fit_to(original, classes)
        if changes and not self._logged:
            log.warning("AutoAttack on %d classes: %s", classes, "; ".join(changes))
            self._logged = True
        return original.run_standard_evaluation(images, labels, batch_size=len(images))[0]


def _fit_to(original: Any, classes: int) -> list[str]:
    """Limit the targets to the other classes, replace DLR losses that need more classes, and return what changed."""
    run, targeted, changes = set(original.attacks_to_run), original.apgd_targeted, []
    for name, attack in (("apgd-t", targeted), ("fab-t", original.fab)):
        if name in run and attack.n_target_classes >= classes:
            changes.append(f"{name} has {classes - 1} of its {attack.n_target_classes} targets")
        attack.n_target_classes = min(attack.n_target_classes, classes - 1)

    def targeted_margin(logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.gather(1, targeted.y_target[:, None]) - logits.gather(1, labels[:, None]))[:, 0]

    if classes < 3:
        original.apgd.dlr_loss = margin
    if classes < 4:  # a third logit would do as a denominator, but make the loss constant for the third class
        targeted.dlr_loss_targeted = targeted_margin
        logging.getLogger("auto-attack").addFilter(_is_true)
    replaced = [name for name, smallest in (("apgd-dlr", 3), ("apgd-t", 4)) if name in run and classes < smallest]
    return changes + [f"{name} ascends the margin, as its DLR loss needs more classes" for name in replaced]


def _is_true(record: logging.LogRecord) -> bool:
    """Drop pyautoattack's warning that the DLR loss cannot be used, where the margin is."""
    return "it is not possible to use" not in record.getMessage()


class Momentum(ThirdParty):
    """foolbox's momentum iterative method, MI-FGSM (Dong et al. 2018), with gradients normalized as in the paper.

    Each gradient has length 1 in L1 before it is summed, equation 6 of the paper; foolbox sums the signs of the
    gradients, or in L2 their directions.

    Args:
        epsilon: radius in pixel units.
        norm: 'linf' or 'l2'.
        steps: of size epsilon / steps, as in the paper.
        momentum: decay of the gradients' running sum.
    """

    draws_per_image = True  # draws nothing

    def __init__(self, *, epsilon: float | str, norm: str = "linf", steps: int = 40, momentum: float = 1.0):
        super().__init__(epsilon, norm, ("linf", "l2"))
        self.steps = check_number("steps", steps, lowest=1, whole=True)
        self.momentum = check_number("momentum", momentum, lowest=0)
        self.title = f"MI-FGSM-{steps}"

    def _run(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        foolbox = load_foolbox()
        from foolbox.attacks.gradient_descent_base import normalize_lp_norms

        original: Any = getattr(foolbox.attacks, f"{NORMS[self.norm]}MomentumIterativeFastGradientMethod")

        class Normalized(original):
            def normalize(self, gradients: Any, **_: Any) -> Any:
                return normalize_lp_norms(gradients, p=1)

        attack = Normalized(momentum=self.momentum, steps=self.steps, rel_stepsize=1 / self.steps, random_start=False)
        bounded = foolbox.PyTorchModel(net, bounds=(0, 1), device=images.device)
        return attack(bounded, images, labels, epsilons=self.epsilon)[1]  # (raw, clipped, success)
