"""Interventions on neurons: activation patching and ablation of a layer's most sensitive neurons, with controls."""

from nsr.interventions.analysis import AnalysisContext
from nsr.interventions.effects import Effects, Row
from nsr.interventions.experiment import Interventions
from nsr.interventions.intervene import intervene

__all__ = ["AnalysisContext", "Effects", "Interventions", "Row", "intervene"]
