"""What stands around the training step: records, progress, dashboards; weight perturbation, ramps, alarms."""

from nsr.callbacks.alarms import TrainingAlarms
from nsr.callbacks.progress import ProgressLine
from nsr.callbacks.ramp import Ramp
from nsr.callbacks.records import RunRecords
from nsr.callbacks.sensitivity import SensitivityLogger
from nsr.callbacks.weight_perturbation import AdversarialWeightPerturbation

__all__ = [
    "AdversarialWeightPerturbation",
    "ProgressLine",
    "Ramp",
    "RunRecords",
    "SensitivityLogger",
    "TrainingAlarms",
]
