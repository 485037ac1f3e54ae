"""A project of one's own: data, network, objective, attack and metric, each named by `_target_` in conf/."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from torchmetrics import Metric


def bars(images: int = 640, size: int = 12, seed: int = 0) -> dict[str, TensorDataset]:
    """Gray images with a horizontal bar, a vertical bar or a square; a fifth of them for the test."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % 3
    pictures, places = 0.4 * torch.rand(images, 1, size, size, generator=draw), torch.randint(size - 3, (images, 2))
    for picture, label, place in zip(pictures, labels, places, strict=True):
        top, left = (slice(int(start), int(start) + 3) for start in place)
        picture[0, top if label != 1 else slice(None), left if label != 0 else slice(None)] += 0.5
    cut = images // 5
    return {"train": TensorDataset(pictures[cut:], labels[cut:]), "test": TensorDataset(pictures[:cut], labels[:cut])}


class Net(nn.Module):
    """A network whose forward returns a dict; nsr passes the arguments that the signature names."""

    def __init__(self, channels: int, classes: int, width: int = 16):
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(channels, width, 3), nn.ReLU()
        self.conv2, self.act2 = nn.Conv2d(width, width, 3), nn.ReLU()
        self.head = nn.Linear(width, classes)

    def forward(self, images):
        features = self.act2(self.conv2(self.act1(self.conv1(images)))).amax((2, 3))
        return {"logits": self.head(features), "embedding": features}


def feature_pairing(adversarial_logits, clean_features, adversarial_features, labels, weight: float = 0.5):
    """Adversarial training, and the squared distance of the features of the two views."""
    distances = [F.mse_loss(adversarial_features[layer], clean_features[layer]) for layer in clean_features]
    return {
        "cross_entropy": F.cross_entropy(adversarial_logits, labels),
        "pairing": weight * torch.stack(distances).mean(),
    }


def random_signs(net, images, labels, epsilon: float = 0.1):
    """The corner of the ball that is drawn at random: the weakest attack there is."""
    return (images + epsilon * torch.randn_like(images).sign()).clamp(0, 1)


class WorstClassAccuracy(Metric):
    """The accuracy of the class with the lowest one."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.add_state("correct", torch.zeros(num_classes), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros(num_classes), dist_reduce_fx="sum")

    def update(self, logits, labels):
        classes = F.one_hot(labels, len(self.images)).float()
        self.images += classes.sum(0)
        self.correct += (classes * (logits.argmax(1) == labels).float()[:, None]).sum(0)

    def compute(self):
        return (self.correct / self.images.clamp(min=1)).min()
