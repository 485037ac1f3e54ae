"""Images (batch, channel, height, width) in [0, 1] and labels (batch,): data sets, batches, augmentation."""

from nsr.data.arrays import npz
from nsr.data.batches import EvaluationBatches, TrainingBatches
from nsr.data.crops import CropFlip, CropShift
from nsr.data.datasets import image_data
from nsr.data.description import DataDescription
from nsr.data.image_folder import ImageFolder
from nsr.data.images import TensorImages
from nsr.data.mixing import CutMix, MixUp
from nsr.data.module import ImageData
from nsr.data.sources import CIFAR10, CIFAR100, MNIST, STL10, SVHN, Digits, FashionMNIST, MNIST5k

__all__ = ["CIFAR10", "CIFAR100", "MNIST", "STL10", "SVHN", "CropFlip", "CropShift", "CutMix", "DataDescription"]
__all__ += ["Digits", "EvaluationBatches", "FashionMNIST", "ImageData", "ImageFolder", "MNIST5k", "MixUp"]
__all__ += ["TensorImages", "TrainingBatches", "image_data", "npz"]
