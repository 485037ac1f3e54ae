"""Everything beside the training step: records, progress, sensitivities, checks, AWP, weight averages, ramps."""

from nsr.callbacks.averages import WeightAverages
from nsr.callbacks.checks import TrainingChecks
from nsr.callbacks.freeze import Freeze
from nsr.callbacks.progress import ProgressRows
from nsr.callbacks.ramp import Ramp, StepsRamp
from nsr.callbacks.records import RunRecords
from nsr.callbacks.sensitivity import SensitivityLogger
from nsr.callbacks.weight_perturbation import AdversarialWeightPerturbation

__all__ = [
    "AdversarialWeightPerturbation",
    "Freeze",
    "ProgressRows",
    "Ramp",
    "RunRecords",
    "SensitivityLogger",
    "StepsRamp",
    "TrainingChecks",
    "WeightAverages",
]
