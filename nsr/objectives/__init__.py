"""What a network is trained for. Each file: the equation, its source, the terms it logs by name."""

from nsr.objectives.adversarial import AdversarialTraining
from nsr.objectives.free import Free
from nsr.objectives.logit_pairing import LogitPairing
from nsr.objectives.mart import Mart
from nsr.objectives.natural import Natural
from nsr.objectives.objective import Objective
from nsr.objectives.trades import Trades

__all__ = ["AdversarialTraining", "Free", "LogitPairing", "Mart", "Natural", "Objective", "Trades"]
