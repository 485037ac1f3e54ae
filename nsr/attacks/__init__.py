"""Attacks, each `attack(net, images, labels) -> images`: gradient attacks, adapters for libraries, a guard for any."""

from nsr.attacks.adaptive import AdaptiveAttack
from nsr.attacks.autoattack import AutoAttack
from nsr.attacks.ensemble import EnsembleAttack
from nsr.attacks.functional import fgsm, pgd
from nsr.attacks.gradient import GradientAttack
from nsr.attacks.guard import Attack, guarded
from nsr.attacks.kept import KeptPerturbation
from nsr.attacks.library import LibraryAttack
from nsr.attacks.momentum import Momentum
from nsr.attacks.transfer import TransferAttack
from nsr.attacks.uniform import UniformDraws

__all__ = [
    "AdaptiveAttack",
    "Attack",
    "AutoAttack",
    "EnsembleAttack",
    "GradientAttack",
    "KeptPerturbation",
    "LibraryAttack",
    "Momentum",
    "TransferAttack",
    "UniformDraws",
    "fgsm",
    "guarded",
    "pgd",
]
