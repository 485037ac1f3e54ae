"""The network behind its normalization, from its settings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nsr.app.instantiation import EXAMPLES, Settings, instantiate, locate
from nsr.data import DataDescription
from nsr.errors import InputError, check_choice, check_logits
from nsr.models import Classifier, build_network
from nsr.models.weights import load_state_dict_file
from nsr.modes import network_mode

SIZES = ("channels", "classes", "image_size")  # of the data that a network is made for


def build_classifier(settings: Settings, description: DataDescription, *, exchange: bool = False) -> Classifier:
    """Make the network with its normalization in front, and the weights of model.weights in it.

    Args:
        settings: of the whole command.
        exchange: convert BatchNorm to SyncBatchNorm.
    """
    own = dict(settings["model"])
    normalization, weights, output = own.pop("normalization", "data"), own.pop("weights", None), own.pop("output", None)
    check_choice("model.normalization", normalization, ("data", "none"))
    factory = locate(own, "model")
    own.pop("_target_")
    net = build_network(factory, instantiate(own, "model"), **{name: getattr(description, name) for name in SIZES})
    if weights is not None:
        load_state_dict_file(net, weights)
    if exchange:
        # here and not by trainer.sync_batchnorm, which makes new layers after the old ones were hooked
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    constants = (description.mean, description.std) if normalization == "data" else ()
    classifier = Classifier(net, *constants, output=output)
    return classifier.to(memory_format=torch.channels_last) if settings.get("channels_last") else classifier  # type: ignore[call-overload]


def example_images(description: DataDescription) -> Tensor:
    """Return black images of the data's size for trial passes."""
    return torch.zeros(EXAMPLES, description.channels, description.image_size, description.image_size)


def check_classifier(classifier: Classifier, description: DataDescription) -> None:
    """Raise InputError unless the network takes the images and returns logits of the classes."""
    example = example_images(description)
    try:
        with torch.no_grad(), network_mode(classifier, "eval"):
            logits = classifier(example)
    except InputError:
        raise
    except Exception as error:  # of any network
        kind, size = type(classifier.net).__name__, " x ".join(map(str, example.shape[1:]))
        raise InputError(
            f"{kind} takes no images of {size}: {' '.join(str(error).split())}; choose another model, or another "
            "data.image_size"
        ) from error
    check_logits(logits, torch.zeros(EXAMPLES, dtype=torch.int64), classes=description.classes)
