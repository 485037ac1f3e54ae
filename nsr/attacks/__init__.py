"""The training attacks: FGSM, BIM and PGD in one loop, the ensemble's and the kept perturbation of free training."""

from nsr.attacks.adaptive import AdaptiveAttack
from nsr.attacks.ensemble import EnsembleAttack
from nsr.attacks.external import AutoAttack, Momentum
from nsr.attacks.gradient import GradientAttack, fgsm, pgd
from nsr.attacks.kept import KeptPerturbation
from nsr.attacks.transfer import TransferAttack
from nsr.attacks.uniform import UniformDraws

__all__ = [
    "AdaptiveAttack",
    "AutoAttack",
    "EnsembleAttack",
    "GradientAttack",
    "KeptPerturbation",
    "Momentum",
    "TransferAttack",
    "UniformDraws",
    "fgsm",
    "pgd",
]
