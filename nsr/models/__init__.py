"""Networks, every activation a module of its own, and the normalisation in front of them; others by their names."""

from nsr.models.named import timm_model, torchvision_model
from nsr.models.normalization import Classifier, Normalize
from nsr.models.resnet import ResNet18, ResNet20
from nsr.models.small_cnn import SmallCNN
from nsr.models.vgg import VGG16

__all__ = ["VGG16", "Classifier", "Normalize", "ResNet18", "ResNet20", "SmallCNN", "timm_model", "torchvision_model"]
