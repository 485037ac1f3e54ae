"""nsr: train image classifiers that withstand adversarial examples, and show why they do.

The names below are the library. They are loaded on first use, so that `import nsr` stays instant: the command line
checks a whole configuration before it loads torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nsr.attacks import fgsm as fgsm
    from nsr.attacks import pgd as pgd
    from nsr.callbacks import SensitivityLogger as SensitivityLogger
    from nsr.features import capture_features as capture_features
    from nsr.metrics.sensitivity import NeuronSensitivity as NeuronSensitivity
    from nsr.sensitivity import most_sensitive as most_sensitive
    from nsr.sensitivity import neuron_sensitivity as neuron_sensitivity
    from nsr.stabilizer import SensitivityStabilizer as SensitivityStabilizer

__version__ = "0.1.0"

_HOME = {
    "neuron_sensitivity": "nsr.sensitivity",
    "most_sensitive": "nsr.sensitivity",
    "NeuronSensitivity": "nsr.metrics.sensitivity",
    "SensitivityStabilizer": "nsr.stabilizer",
    "pgd": "nsr.attacks",
    "fgsm": "nsr.attacks",
    "capture_features": "nsr.features",
    "SensitivityLogger": "nsr.callbacks",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'nsr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
