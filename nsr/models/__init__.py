"""Networks with every activation a module, the normalization in front of them, and builders for any other network."""

from nsr.models.build import build_network as build_network
from nsr.models.build import timm_model, torchvision_model
from nsr.models.classifier import Classifier, Normalize
from nsr.models.classifier import select_output as select_output
from nsr.models.networks import VGG16, SmallCNN
from nsr.models.preactivation import PreActResNet, WideResNet
from nsr.models.resnet import ResNet18, ResNet20, ResNet34, ResNet50

# a checkpoint may name these, see nsr.app.allowlist
__all__ = [
    "VGG16",
    "Classifier",
    "Normalize",
    "PreActResNet",
    "ResNet18",
    "ResNet20",
    "ResNet34",
    "ResNet50",
    "SmallCNN",
    "WideResNet",
    "timm_model",
    "torchvision_model",
]
