"""Attacks, each `attack(net, images, labels) -> images`: gradient attacks, adapters for libraries, a guard for any."""

from nsr.attacks.adaptive import AdaptiveAttack
from nsr.attacks.apgd import APGD, measuring_pgd
from nsr.attacks.black_box import EnsembleAttack, TransferAttack, UniformDraws
from nsr.attacks.functional import fgsm, pgd
from nsr.attacks.gradient import GradientAttack
from nsr.attacks.guard import Attack, guarded
from nsr.attacks.kept import KeptPerturbation
from nsr.attacks.library import LibraryAttack
from nsr.attacks.minimum_norm import DDN, FMN
from nsr.attacks.third_party import AutoAttack, Momentum

__all__ = [
    "APGD",
    "DDN",
    "FMN",
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
    "measuring_pgd",
    "pgd",
]
