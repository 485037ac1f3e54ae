"""What neurons do: analyses of a trained network, each a command of evaluate.py and a Python call."""

from nsr.analysis.calls import intervene
from nsr.analysis.interventions import Interventions
from nsr.analysis.outcomes import Effects, Row

__all__ = ["Effects", "Interventions", "Row", "intervene"]
