"""The training attacks: FGSM, BIM and PGD in one loop, the ensemble's and the kept perturbation of free training."""

from nsr.attacks.adaptive import AdaptiveAttack
from nsr.attacks.ensemble import EnsembleAttack
from nsr.attacks.gradient import GradientAttack, fgsm, pgd
from nsr.attacks.kept import KeptPerturbation
from nsr.attacks.library import AutoAttack, Momentum

__all__ = [
    "AdaptiveAttack",
    "AutoAttack",
    "EnsembleAttack",
    "GradientAttack",
    "KeptPerturbation",
    "Momentum",
    "fgsm",
    "pgd",
]
