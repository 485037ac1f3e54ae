"""Plots from Python: each function takes data frames, arrays or tensors and returns a matplotlib figure.

The report, the dashboards and the commands draw with the same functions. Nothing here loads matplotlib before a figure
is drawn, and nothing needs torch.
"""

from nsr.plots.classes import class_accuracy, confusion_matrix
from nsr.plots.contrasts import intervention_effects, interventions
from nsr.plots.curves import accuracy_by_epsilon, smallest_perturbations, training_curves
from nsr.plots.images import attack_steps, examples, feature_maps, top_images
from nsr.plots.landscapes import landscape
from nsr.plots.sensitivity import ranking_stability, sensitivity_distribution, sensitivity_heat_map
from nsr.plots.style import save

__all__ = [
    "accuracy_by_epsilon",
    "attack_steps",
    "class_accuracy",
    "confusion_matrix",
    "examples",
    "feature_maps",
    "intervention_effects",
    "interventions",
    "landscape",
    "ranking_stability",
    "save",
    "sensitivity_distribution",
    "sensitivity_heat_map",
    "smallest_perturbations",
    "top_images",
    "training_curves",
]
