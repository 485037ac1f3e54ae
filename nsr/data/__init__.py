"""Images (batch, channel, height, width) in [0, 1] and labels (batch,): data sets, batches, augmentation."""

from nsr.data.batches import EvaluationBatches, TrainingBatches
from nsr.data.crops import CropFlip, CropShift
from nsr.data.datasets import image_data, npz
from nsr.data.image_folder import ImageFolder
from nsr.data.images import TensorImages
from nsr.data.mixing import CutMix, MixUp
from nsr.data.module import DataDescription, ImageData
from nsr.data.sources import CIFAR10, Digits, FashionMNIST

__all__ = ["CIFAR10", "CropFlip", "CropShift", "CutMix", "DataDescription", "Digits", "EvaluationBatches"]
__all__ += ["FashionMNIST", "ImageData", "ImageFolder", "MixUp", "TensorImages", "TrainingBatches", "image_data", "npz"]
