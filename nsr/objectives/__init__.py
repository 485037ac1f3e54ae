"""What a network is trained for. Each file: the equation, its source, the terms it logs by name."""

from nsr.objectives.adversarial import AdversarialTraining
from nsr.objectives.natural import Natural
from nsr.objectives.objective import Objective

__all__ = ["AdversarialTraining", "Natural", "Objective"]
