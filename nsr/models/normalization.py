"""Normalization in front of a network: the data's constants, those that its weights were published with, or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from nsr.errors import InputError, check_choice, dotted_name

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SYMMETRIC = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # pixels in [-1, 1]
CHOICES = ("data", "none", "imagenet", "timm")
FORMS = "data (this data set's mean and std), none, imagenet, timm (its default_cfg) or '{mean: [...], std: [...]}'"
Constants = tuple[Sequence[float], Sequence[float]]  # mean and std, one per channel


class Normalization(NamedTuple):
    """What stands in front of a network."""

    record: str | dict[str, list[float]]  # as a configuration has it: 'data', 'none', or mean and std
    constants: tuple[()] | Constants  # (): none
    note: str | None = None  # a line for the user, where the constants come with the weights


def find_normalization(
    choice: Any, net: nn.Module, name: str | None, run: Mapping[str, Any] | None, *, data: Constants, file: str | None
) -> Normalization:
    """Return the normalization that model.normalization names, or that the weights bring.

    Args:
        choice: data, none, imagenet, timm, {mean, std}; None: the data's for a fresh network, else that of the weights.
        net: a network of timm has its constants in `default_cfg`.
        name: of a network of torchvision; None: it is another's.
        run: content of the weight file where it is a checkpoint of a run.
        data: mean and std of the data set.
        file: path of the weight file, None where there is none.
    Errors:
        InputError: an unknown choice; or weights whose normalization is not known.
    """
    if isinstance(choice, Mapping):
        if set(choice) != {"mean", "std"}:
            raise InputError(f"model.normalization has {', '.join(map(str, choice)) or 'nothing'}; it must be {FORMS}")
        return Normalization(dict(choice), (choice["mean"], choice["std"]))
    check_choice("model.normalization", choice, (None, *CHOICES))
    if choice == "none":
        return Normalization("none", ())
    if choice == "data" or (choice is None and file is None):
        return Normalization("data", data)
    if choice is None and run is not None:
        return _of_a_run(run)
    constants: Constants | None = IMAGENET if choice == "imagenet" else timm_constants(net)
    if choice is None and name is not None:
        constants = torchvision_constants(name, net)
    if constants is not None and len(constants[0]) == len(data[0]):
        mean, std = constants
        note = f"the images are normalized with the published mean {tuple(mean)} and std {tuple(std)}"
        others = [
            f"mean {other[0]} and std {other[1]}"
            for other in timm_alternatives(net)
            if other != (tuple(mean), tuple(std))
        ]
        also = f"; other weights of this name have {', '.join(others)}" if others else ""
        return _with(mean, std, None if choice else f"{note}{also} (model.normalization sets others)")
    got = "timm's constants" if choice == "timm" else f"the normalization of model.weights={file}"
    why = f"{got} is not known: {type(net).__name__} has no default_cfg of timm, and is no name of torchvision"
    if constants is not None:
        why = f"{got} is published for {len(constants[0])} channels, but the images have {len(data[0])}"
    raise InputError(f"{why}; give model.normalization: {FORMS}")


def _with(mean: Sequence[float], std: Sequence[float], note: str | None = None) -> Normalization:
    return Normalization({"mean": list(mean), "std": list(std)}, (mean, std), note)


def _of_a_run(content: Mapping[str, Any]) -> Normalization:
    """The constants that a checkpoint of a run has in front of its network."""
    state = content.get("state_dict")
    found = [state.get(f"net.normalize.{name}") for name in ("mean", "std")] if isinstance(state, Mapping) else []
    values = [[round(float(value), 6) for value in row.flatten()] for row in found if isinstance(row, Tensor)]
    return _with(values[0], values[1]) if len(values) == 2 else Normalization("none", ())


def timm_constants(net: nn.Module) -> Constants | None:
    """Return the mean and std in the `default_cfg` of a network of timm, None where it has none."""
    own = getattr(net, "default_cfg", None)
    if not isinstance(own, Mapping) or not own.get("mean") or not own.get("std"):
        return None
    return own["mean"], own["std"]


def timm_alternatives(net: nn.Module) -> list[Constants]:
    """Return every mean and std that timm publishes weights of this architecture with."""
    name = (getattr(net, "default_cfg", None) or {}).get("architecture")
    if not name:
        return []
    from timm.models import get_arch_pretrained_cfgs

    return sorted({(tuple(weights.mean), tuple(weights.std)) for weights in get_arch_pretrained_cfgs(name).values()})


def torchvision_constants(name: str, net: nn.Module) -> Constants | None:
    """Return the mean and std that torchvision's newest weights of a network want, None where it has none."""
    from torchvision.models import get_model_weights

    if getattr(net, "transform_input", None) is False:  # inception_v3 and googlenet, whose builder would set it
        return SYMMETRIC
    published = list(get_model_weights(name))
    if not published:
        return None
    preset = get_model_weights(name)["DEFAULT"].transforms()
    return tuple(preset.mean), tuple(preset.std)


def torchvision_name(factory: Callable[..., Any], settings: Mapping[str, Any]) -> str | None:
    """Return torchvision's name of the network that a factory makes, None where it is another's."""
    where = dotted_name(factory)
    if where == "nsr.models.build.torchvision_model":
        return settings.get("name")
    return factory.__name__ if where.startswith("torchvision.models.") and not isinstance(factory, type) else None
