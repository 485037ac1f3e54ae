"""Training objectives, one per file: the equation, its source, its terms. Any callable may stand beside them."""

from nsr.objectives.adversarial import AdversarialTraining
from nsr.objectives.free import Free
from nsr.objectives.interface import INPUTS, compute_terms, required_inputs, required_views
from nsr.objectives.logit_pairing import LogitPairing
from nsr.objectives.mart import Mart
from nsr.objectives.natural import Natural
from nsr.objectives.trades import Trades

__all__ = [
    "INPUTS",
    "AdversarialTraining",
    "Free",
    "LogitPairing",
    "Mart",
    "Natural",
    "Trades",
    "compute_terms",
    "required_inputs",
    "required_views",
]
