"""nsr: train robust image classifiers and explain their robustness through neuron sensitivity.

The names below are the library. They are loaded on first use, so that `import nsr` takes no time: the command line
checks a whole configuration before it loads torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nsr import plots as plots
    from nsr.attacks import fgsm as fgsm
    from nsr.attacks import pgd as pgd
    from nsr.callbacks import SensitivityLogger as SensitivityLogger
    from nsr.features import FeatureExtractor as FeatureExtractor
    from nsr.features import capture_features as capture_features
    from nsr.interventions import intervene as intervene
    from nsr.layers import find_layers as find_layers
    from nsr.metrics.sensitivity import NeuronSensitivity as NeuronSensitivity
    from nsr.modes import batch_norm_mode as batch_norm_mode
    from nsr.sensitivity import most_sensitive as most_sensitive
    from nsr.sensitivity import neuron_sensitivity as neuron_sensitivity
    from nsr.stabilizer import SensitivityStabilizer as SensitivityStabilizer
    from nsr.training.module import RobustClassifier as RobustClassifier

__version__ = "0.1.0"

_HOME = {
    "neuron_sensitivity": "nsr.sensitivity",
    "most_sensitive": "nsr.sensitivity",
    "SensitivityStabilizer": "nsr.stabilizer",
    "FeatureExtractor": "nsr.features",
    "capture_features": "nsr.features",
    "find_layers": "nsr.layers",
    "batch_norm_mode": "nsr.modes",
    "pgd": "nsr.attacks",
    "fgsm": "nsr.attacks",
    "NeuronSensitivity": "nsr.metrics.sensitivity",
    "intervene": "nsr.interventions",
    "RobustClassifier": "nsr.training.module",
    "SensitivityLogger": "nsr.callbacks",
}
__all__ = [*_HOME, "__version__", "plots"]


def __getattr__(name: str) -> Any:
    if name == "plots":
        return import_module("nsr.plots")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'nsr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
