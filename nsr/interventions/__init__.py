"""What neurons do: analyses of a trained network, each a command of evaluate.py and a Python call."""

from nsr.interventions.effects import Effects, Row
from nsr.interventions.experiment import Interventions
from nsr.interventions.intervene import intervene

__all__ = ["Effects", "Interventions", "Row", "intervene"]
