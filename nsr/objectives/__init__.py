"""Training objectives: the equation, its source, its terms. Any callable may stand beside them."""

from nsr.objectives.adversarial import AdversarialTraining, Free, LogitPairing, Natural
from nsr.objectives.interface import INPUTS, auxiliary_inputs, compute_terms, required_inputs, required_views
from nsr.objectives.mart import Mart
from nsr.objectives.trades import Trades

__all__ = [
    "INPUTS",
    "AdversarialTraining",
    "Free",
    "LogitPairing",
    "Mart",
    "Natural",
    "Trades",
    "auxiliary_inputs",
    "compute_terms",
    "required_inputs",
    "required_views",
]
