"""Interventions on neurons: activation patching and ablation of a layer's most sensitive neurons, with controls."""

from nsr.interventions.effects import Effects, Row
from nsr.interventions.experiment import AnalysisContext, Interventions, intervene

__all__ = ["AnalysisContext", "Effects", "Interventions", "Row", "intervene"]
