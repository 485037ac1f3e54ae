"""The training attacks: FGSM, BIM and PGD in one loop, the ensemble's and the kept perturbation of free training."""

from nsr.attacks.ensemble import EnsembleAttack
from nsr.attacks.gradient import GradientAttack, fgsm, pgd
from nsr.attacks.kept import KeptPerturbation

__all__ = ["EnsembleAttack", "GradientAttack", "KeptPerturbation", "fgsm", "pgd"]
