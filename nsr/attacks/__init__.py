"""The training attack: FGSM, BIM and PGD in L-infinity and L2, one loop."""

from nsr.attacks.gradient import GradientAttack, fgsm, pgd

__all__ = ["GradientAttack", "fgsm", "pgd"]
