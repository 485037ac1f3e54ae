"""What happens at the end of an epoch: sensitivities to the dashboards, records to files, a line to the screen."""

from nsr.callbacks.progress import ProgressLine
from nsr.callbacks.records import RunRecords
from nsr.callbacks.sensitivity import SensitivityLogger

__all__ = ["ProgressLine", "RunRecords", "SensitivityLogger"]
