"""What stands around the training step: records, progress, dashboards; weight perturbation, ramps, a collapse told."""

from nsr.callbacks.collapse import ConstantNetworkStop
from nsr.callbacks.progress import ProgressLine
from nsr.callbacks.ramp import Ramp
from nsr.callbacks.records import RunRecords
from nsr.callbacks.sensitivity import SensitivityLogger
from nsr.callbacks.weight_perturbation import AdversarialWeightPerturbation

__all__ = [
    "AdversarialWeightPerturbation",
    "ConstantNetworkStop",
    "ProgressLine",
    "Ramp",
    "RunRecords",
    "SensitivityLogger",
]
