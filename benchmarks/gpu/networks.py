"""The network and the random images that the parts in this process measure on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.gpu.given import Sizes
from nsr import models
from nsr.models import Classifier

CLASSES = 10
EPSILON = "8/255"
MEAN, STD = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]  # about those of CIFAR-10


def best_device() -> torch.device:
    """The GPU, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def network(sizes: Sizes) -> Classifier:
    """A network with the same random weights each time; its BatchNorm has seen a batch, so that nothing explodes."""
    torch.manual_seed(0)
    net = getattr(models, sizes.network)(channels=3, classes=CLASSES, image_size=sizes.image_size)
    classifier = Classifier(net, MEAN, STD).train()
    norms = [module for module in classifier.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        classifier(random_batch(sizes, 32, seed=100)[0])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return classifier


def random_batch(sizes: Sizes, count: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images (count, 3, size, size) in [0, 1] and labels (count,), on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, sizes.image_size, sizes.image_size, generator=generator)
    return images, torch.randint(0, CLASSES, (count,), generator=generator)
