"""Build any network with the arguments that its constructor names, and those of torchvision and timm by name.

Pretrained weights are never fetched: weights come from a file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nsr.errors import InputError, call_checked, check_fits_memory, did_you_mean, dotted_name, one_line
from nsr.models.networks import check_sizes
from nsr.randomness import seeded

# names under which constructors ask for the facts about the data
SYNONYMS = {
    "channels": ("channels", "in_channels", "num_channels", "n_channels", "in_chans"),
    "classes": ("classes", "num_classes", "n_classes"),
    "image_size": ("image_size", "img_size"),
}
ALLOCATORS = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)
# arguments of timm's builder that fetch or read weights, or change what the network returns
REFUSED = ("pretrained", "checkpoint_path", "cache_dir", "features_only")


def build_network(
    factory: Callable[..., nn.Module], settings: Mapping[str, Any], *, channels: int, classes: int, image_size: int
) -> nn.Module:
    """Return the network that a configuration's model group describes.

    Args:
        factory: the class or function that `_target_` names; `settings` are its arguments.
        channels, classes, image_size: of the data, each passed only where the signature names it (or num_classes,
            in_channels, img_size, ...) and the settings do not set it.
    Errors:
        InputError: in one line: settings that the signature does not name, what the constructor raised, a result that
            is no network, or one larger than this machine's memory.
    """
    offered: dict[str, int] = {}
    for fact, value in (("channels", channels), ("classes", classes), ("image_size", image_size)):
        if not any(name in settings for name in SYNONYMS[fact]):
            offered |= dict.fromkeys(SYNONYMS[fact], value)
    with Allocations():
        net = call_checked("model", factory, settings, **offered)
    if not isinstance(net, nn.Module):
        raise InputError(f"{dotted_name(factory)} returns {type(net).__name__}; it must be a torch.nn.Module")
    return net


def class_tensors(
    net: nn.Module,
    factory: Callable[..., nn.Module],
    settings: Mapping[str, Any],
    *,
    channels: int,
    classes: int,
    image_size: int,
) -> list[str]:
    """Return the names in the state_dict of `net` whose shape depends on the number of classes: those of its heads.

    It is `net` as `build_network` made it; another of one class more is built beside it, where possible without memory,
    and the random generators are left as they were. Empty where the number of classes is no argument, or the network
    cannot be built twice.
    """
    shapes = {key: tensor.shape for key, tensor in net.state_dict().items()}
    for device in ("meta", "cpu"):  # some constructors need values
        try:
            with seeded(0), torch.device(device):
                sizes = {"channels": channels, "classes": classes + 1, "image_size": image_size}
                other = build_network(factory, settings, **sizes).state_dict()
        except InputError:
            continue
        return [key for key, shape in shapes.items() if key in other and other[key].shape != shape]
    return []


class Allocations(TorchFunctionMode):
    """Refuse tensors that together exceed the physical memory, before they are allocated.

    Args:
        weights: of a checkpoint whose settings are followed: these tensors may take 4 times as much, and 256 MiB.
    """

    def __init__(self, weights: Any = None):
        super().__init__()
        self.size_bytes = 0
        self.most: float | None = None
        if weights is not None:  # by storage: a tensor of any shape may be a view of one number
            values = weights.values() if isinstance(weights, Mapping) else ()
            dense = [value for value in values if isinstance(value, Tensor) and value.layout == torch.strided]
            storages = [value.untyped_storage() for value in dense]
            self.most = 4 * sum({each.data_ptr(): each.nbytes() for each in storages}.values()) + 2**28

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in ALLOCATORS and kwargs.get("device") is None and kwargs.get("out") is None:
            try:
                self.size_bytes += function(*args, **{**kwargs, "device": "meta"}).nbytes
            except RuntimeError:  # more elements than torch can count
                self.size_bytes += 2**65
            if self.most is not None and self.size_bytes > self.most:
                raise InputError("the checkpoint's settings describe a network much larger than its weights: refused")
            fix = "set a smaller size such as model.width or data.image_size"
            check_fits_memory("the network", self.size_bytes, fix)
        return function(*args, **kwargs)


def torchvision_model(*, name: str, channels: int, classes: int, image_size: int, **settings: Any) -> nn.Module:
    """Return an image classifier of torchvision, freshly initialized; its modules have torchvision's names.

    inception_v3 and googlenet are built without their auxiliary heads unless aux_logits=True; the network then returns
    a named tuple in training (model.output=logits). Their published weights were trained on pixels in [-1, 1]: a mean
    and std of 0.5 per channel.

    Args:
        name: as in torchvision.models.list_models(module=torchvision.models): 'resnet18'.
        channels, classes, image_size: of the data, with 3 channels; the size where a network is built for one.
        settings: further arguments of torchvision's class.
    Errors:
        InputError: an unknown name or setting, other channels than 3, or a size that the network cannot be built for.
    """
    check_sizes(channels=channels, classes=classes, image_size=image_size, smallest=1)
    _check_name(name, torchvision_classifiers(), "torchvision")
    if channels != 3:
        advice = "model=timm and nsr's own networks take any number"
        raise InputError(f"torchvision's {name} takes images of 3 channels, but data.channels is {channels}; {advice}")
    from torchvision.models import get_model_builder

    builder = get_model_builder(name)
    known = inspect.signature(inspect.signature(builder).return_annotation.__init__).parameters
    for key in settings:
        if key not in known:
            raise InputError(f"model.{key} is not an argument of torchvision's {name}{did_you_mean(key, known)}")
    own = {"image_size": image_size, "input_size": (image_size, image_size), "aux_logits": False, "init_weights": True}
    settings = {key: value for key, value in own.items() if key in known} | settings
    what = f"torchvision's {name} cannot be built for images of 3 x {image_size} x {image_size}"
    return _build(what, builder, weights=None, num_classes=classes, **settings)


def timm_model(*, name: str, channels: int, classes: int, image_size: int, **settings: Any) -> nn.Module:
    """Return a network of timm, freshly initialized; its modules have timm's names.

    Args:
        name: as in timm.list_models(): 'vit_tiny_patch16_224', without the tag of pretrained weights.
        channels, classes, image_size: of the data; the size where a network is built for one.
        settings: further arguments of timm's builder, but none that fetches weights.
    Errors:
        InputError: timm is not installed, an unknown name or setting, or a size that the network cannot be built for.
    """
    check_sizes(channels=channels, classes=classes, image_size=image_size, smallest=1)
    try:
        import timm
    except ImportError:
        raise InputError("model=timm needs the package timm: pip install timm") from None
    _check_name(name, timm.list_models(), "timm")
    for key in settings:
        if key in REFUSED or key.startswith("pretrained_"):
            raise InputError(f"model.{key} is refused: weights come from a file; set model.weights=FILE")
    described = timm.get_pretrained_cfg(name)
    sizes: dict[str, Any] = {"img_size": image_size} if described and described.fixed_input_size else {}
    fixed = {"num_classes": classes, "in_chans": channels, "pretrained": False}
    what = f"timm's {name} cannot be built for images of {channels} x {image_size} x {image_size}"
    return _build(what, timm.create_model, model_name=name, **{**sizes, **settings, **fixed})


def torchvision_classifiers() -> list[str]:
    """Return the names of torchvision's image classifiers: none for detection, segmentation or video."""
    from torchvision import models

    return models.list_models(module=models)


def _check_name(name: object, known: Collection[str], library: str) -> None:
    if name in known:
        return
    if isinstance(name, str) and (":" in name or "/" in name):
        advice = f"it must be a name that {library} itself knows; weights come from model.weights=FILE"
        raise InputError(f"model.name is {name!r}, which looks in a hub or a folder: refused; {advice}")
    hint = did_you_mean(name, known)
    raise InputError(f"model.name is {name!r}; {library} has no image classifier of that name{hint}")


def _build(what: str, builder: Callable[..., nn.Module], **settings: Any) -> nn.Module:
    try:
        return builder(**settings)
    except Exception as error:  # assertions, value errors and type errors, of 80 and 1,300 networks
        raise InputError(f"{what}: {one_line(error)}; take another model, or another data.image_size") from error
