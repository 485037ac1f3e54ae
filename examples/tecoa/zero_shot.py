"""Robust fine-tuning of CLIP's image encoder: TeCoA (Mao et al. 2023) and FARE (Schlarmann et al. 2024)."""

from collections.abc import Sequence
from copy import deepcopy

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nsr.attacks import GradientAttack

SCALE = 100.0  # of the cosines, CLIP's own after its training


class ZeroShot(nn.Module):
    """An image encoder of open_clip with a fixed table of text embeddings as its classifier: pixels -> logits.

        logits_k = 100 * cos(encoder(x), text_k)

    It holds a frozen copy of the encoder as it was loaded, which FARE compares with. It normalizes with the encoder's
    own mean and standard deviation: model.normalization=none.

    Args:
        classes: number of classes, to compare with the names.
        class_names: of the classes, in the order of their labels.
        name: of an open_clip model.
        pretrained: a file, or a tag of open_clip that is in its cache; None: random weights.
        template: of the text of a class.
        configuration: a JSON file or a folder of them, with further models for open_clip.
    """

    def __init__(
        self,
        *,
        classes: int,
        class_names: Sequence[str],
        name: str = "ViT-B-32",
        pretrained: str | None = None,
        template: str = "a photo of a {}.",
        configuration: str | None = None,
    ):
        super().__init__()
        if len(class_names) != classes:
            raise ValueError(f"model.class_names has {len(class_names)} names; the data have {classes} classes")
        if configuration is not None:
            open_clip.add_model_config(configuration)
        model = open_clip.create_model(name, pretrained=pretrained)
        texts = open_clip.get_tokenizer(name)([template.format(each) for each in class_names])
        with torch.no_grad():
            self.register_buffer("texts", F.normalize(model.encode_text(texts), dim=1))  # (class, embedding)
        for key in ("mean", "std"):
            constants = model.visual.preprocess_cfg[key]
            self.register_buffer(key, torch.tensor(constants).view(-1, 1, 1))
        self.encoder = model.visual.requires_grad_(True)
        self.original = deepcopy(self.encoder).requires_grad_(False)

    def train(self, mode: bool = True) -> "ZeroShot":
        super().train(mode)
        self.original.eval()
        return self

    def embedding(self, images: Tensor) -> Tensor:
        """Return the embeddings (batch, embedding), not normalized, of images (batch, 3, height, width) in [0, 1]."""
        return self.encoder((images - self.mean) / self.std)

    def original_embedding(self, images: Tensor) -> Tensor:
        """Return those of the encoder as it was loaded, constants."""
        with torch.no_grad():
            return self.original((images - self.mean) / self.std)

    def forward(self, images: Tensor) -> Tensor:
        return SCALE * F.normalize(self.embedding(images), dim=1) @ self.texts.T


def squared_distance(embedding: Tensor, original: Tensor) -> Tensor:
    """Return ||z - z_0||^2 of each image, (batch,), of embeddings (batch, embedding)."""
    return (embedding - original).square().sum(1)


def fare(clean_images: Tensor, adversarial_images: Tensor, net) -> Tensor:
    """Return the mean squared distance of adversarial embeddings to the clean ones of the original encoder.

        L = max over |x' - x| <= epsilon of || encoder(x') - original(x) ||^2

    Source: Schlarmann et al. 2024, equation 3: neither labels nor texts. x' is that of `EmbeddingAttack`.
    """
    return squared_distance(net.net.embedding(adversarial_images), net.net.original_embedding(clean_images)).mean()


class EmbeddingAttack:
    """PGD that ascends the squared distance to the clean embedding of the original encoder.

    Args:
        settings: of `nsr.attacks.GradientAttack`.
    """

    restores_network = True  # GradientAttack does

    def __init__(self, **settings):
        self.settings = settings
        GradientAttack(**settings)  # raises where one is out of range

    def __call__(self, net, images: Tensor, labels: Tensor, *, generator=None) -> Tensor:
        original = net.net.original_embedding(images)
        attack = GradientAttack(**self.settings, loss=lambda embedding, *_: squared_distance(embedding, original))
        return attack(Embedding(net.net), images, labels, generator=generator)


class Embedding(nn.Module):
    """A `ZeroShot` network that returns its embeddings."""

    def __init__(self, net: ZeroShot):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net.embedding(images)
