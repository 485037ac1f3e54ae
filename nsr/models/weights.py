"""Read third-party weight files without running code from them; faults are reported in one line."""

from __future__ import annotations

import json
import logging
import os
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from safetensors.torch import load
from torch import Tensor, nn

from nsr.compat import versions_of, with_versions
from nsr.errors import InputError, one_line
from nsr.models.stored import BATCH_COUNTER, COMPILED, below, choose_prefix, constants, flat, renamed
from nsr.run.files import damaged_part, regular
from nsr.zoo import zoo_file

log = logging.getLogger(__name__)
NAMES_SHOWN = 3
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # layers that can be a head
NETWORK = "state_dict.net.net."  # the module keeps its Classifier as `net`, the Classifier its network as `net`
PLAIN_PICKLE = "it is not a checkpoint that torch.save wrote; a plain pickle"


def read_checkpoint(path: str | os.PathLike[str]) -> Any:
    """Return the content of a file that `torch.save` or safetensors wrote, or of 'zoo:NAME', its tensors on the CPU.

    Only tensors and plain values are read (`weights_only`), so a file cannot run code here. A file of safetensors with
    a run's settings as JSON in the entry `nsr_settings` of its metadata is read as the checkpoint of that run.

    Errors:
        InputError: one line that names the file: it cannot be opened, is no checkpoint, truncated or damaged, or
            contains something that could run code.
    """
    if not isinstance(path, (str, os.PathLike)):  # open() would take a number for a file descriptor
        raise InputError(f"a checkpoint's path is {path!r}; it must be text")
    name = repr(os.fspath(path))  # repr: a name with a line break stays on one line
    with _open(zoo_file(path), name) as file, warnings.catch_warnings():
        if (part := damaged_part(file)) is not None:
            raise InputError(f"{name} is damaged: {part} does not have its checksum; copy it again, or take another")
        file.seek(0)
        warnings.simplefilter("ignore")  # torch warns of unusual pickles before it refuses them with an error
        is_safe = file.read(9)[8:] == b"{"  # safetensors: the length of a header, then the header
        file.seek(0)
        try:
            return _safetensors(file) if is_safe else torch.load(file, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            found = re.search(r"GLOBAL (\S+)", str(error))  # in a paragraph that advises to disable the protection
            reason = f"it holds {found[1]}, which" if found else PLAIN_PICKLE
            fix = "; save a plain state_dict instead" if found else ""
            raise InputError(f"refused to read {name}: {reason} could run code when loaded{fix}") from error
        except Exception as error:  # a damaged file makes torch raise nearly anything, KeyError: '101' among it
            writer = "safetensors" if is_safe else "torch.save"
            raise InputError(f"{name} is cut short or no checkpoint that {writer} wrote") from error


def read_run_checkpoint(path: str | os.PathLike[str]) -> Mapping[str, Any] | None:
    """Return the content of a file where it is the checkpoint of a run, else None; never an error."""
    try:
        content = read_checkpoint(path)
    except InputError:  # raised where the weights are loaded
        return None
    return content if isinstance(content, Mapping) and "nsr_settings" in content else None


class OtherNetwork(InputError):
    """Weights whose names or shapes are not the network's."""


def load_state_dict_file(
    net: nn.Module,
    path: str | os.PathLike[str],
    *,
    prefix: str | None = None,
    new_head: int | None = None,
    head: Collection[str] = (),
) -> None:
    """Copy the weights in the file at `path` into `net`; every key and shape has to fit.

    The keys of nested mappings and the names in them form one dotted name each, such as 'state_dict.model.fc.weight'.
    The weights are the entries under the prefix where most of the names of `net` are, here 'state_dict.model.'.

    Args:
        net: changed in place, and only if everything fits; its `published_names`, where it has them, are {part of a
            name in files: part of its own name}.
        path: a file of `torch.save` or safetensors with a state_dict, itself or inside mappings, or the checkpoint of
            a run.
        prefix: of the weights, needed where several fit: 'ema', or '.' for none; None: found.
        new_head: number of classes; the heads keep the values that they have in `net`, whatever their shapes in the
            file, and every other tensor is loaded.
        head: names of the heads' tensors, as `nsr.models.build.class_tensors` finds them; empty: see `with_new_head`.
    Errors:
        OtherNetwork: its names or shapes do not fit `net`.
        InputError: one line that names the file; see `read_checkpoint`; or its values do not fit `net`.
    """
    content, name = read_checkpoint(path), repr(os.fspath(path))
    expected = net.state_dict()
    stored = stored_under_names_of(net, content)
    if not stored:
        got = f"an object of type {type(content).__name__}"
        if isinstance(content, Mapping):
            got = f"a mapping with the keys {_some(content)}" if content else "an empty mapping"
        raise InputError(f"{name} holds no state_dict, a mapping of names to tensors, but {got}")
    if prefix is None:
        prefix = NETWORK if "nsr_settings" in content else choose_prefix(expected, stored, name)
    prefix = f"{prefix.strip('.')}." if prefix.strip(".") else ""
    state = below(stored, prefix)
    if not state:
        known = _some(dict.fromkeys(key.rpartition(".")[0] for key in stored))
        raise InputError(f"{name} holds no weights under {prefix!r}; its tensors are under {known}")
    _leave_constants_out(name, state, [key for key in state if key not in expected])
    if "nsr_settings" not in content:  # a run's constants come with its network, see nsr.models.normalization
        _leave_constants_out(name, dict(stored), [key for key in stored if not key.startswith(prefix)])
    if new_head is not None:
        state = with_new_head(net, state, new_head, name, head=head)
    load_state_dict(net, state, f"{name}, under {prefix!r}," if prefix not in ("", NETWORK) else name)
    if prefix not in ("", NETWORK):
        unused = len(stored) - len(state)
        log.info("%s: loaded the weights under %r; %d other tensors are not used", name, prefix, unused)


def stored_under_names_of(net: nn.Module, content: Any) -> dict[str, Tensor]:
    """Return {dotted name: tensor} of a file's content, published names replaced by those of the class of `net`."""
    stored = flat(content)
    if not any(COMPILED in key for key in net.state_dict()):
        stored = renamed(stored, {COMPILED: ""})
    return renamed(stored, getattr(net, "published_names", {}))


def with_new_head(
    net: nn.Module, state: Mapping[str, Tensor], classes: int, name: str, *, head: Collection[str] = ()
) -> dict[str, Tensor]:
    """Return `state`, from the file called `name`, with the values that the head of `net` has; log the head's name.

    The head is the tensors named in `head`. Without these it is the linear layers and convolutions with an output
    per class that the file lacks, or has with another number of outputs; without any, the last of these layers.

    Errors:
        InputError: `head` is empty and no layer has an output per class.
    """
    expected = net.state_dict()
    if not head:
        head = _layers_with_outputs(net, state, classes)
    layers = list(dict.fromkeys(key.rpartition(".")[0] or key for key in head))
    heads = f"{' and '.join(layers)} {'is' if len(layers) == 1 else 'are'} initialized at random"
    log.info("%s: %s for %d classes, every other tensor is loaded", name, heads, classes)
    return with_versions({**state, **{key: expected[key] for key in head}}, versions_of(state))


def _layers_with_outputs(net: nn.Module, state: Mapping[str, Tensor], classes: int) -> list[str]:
    layers = {
        key: {f"{key}.{part}": tensor for part, tensor in module.state_dict().items()}
        for key, module in net.named_modules()
        if isinstance(module, LINEAR) and module.weight.shape[0] == classes
    }
    if not layers:
        fix = "model.new_head=true needs a last linear layer or convolution with an output per class"
        raise InputError(f"{type(net).__name__} has no layer with {classes} outputs; {fix}")
    new = [key for key, tensors in layers.items() if any(_is_new(state.get(part), tensors[part]) for part in tensors)]
    return [part for key in new or [*layers][-1:] for part in layers[key]]


def _is_new(stored: Tensor | None, own: Tensor) -> bool:
    return stored is None or (stored.shape[1:] == own.shape[1:] and stored.shape != own.shape)


def _leave_constants_out(name: str, state: dict[str, Tensor], names: list[str]) -> None:
    """Remove what looks like the constants of a normalization from the state, and log how to set them."""
    for mean, std in constants(state, names):
        # the shortest text of a float32: 0.3765, not 0.37650001
        means, stds = (",".join(map(str, state.pop(key).flatten().float().numpy())) for key in (mean, std))
        fix = f"model.normalization='{{mean: [{means}], std: [{stds}]}}'"
        log.warning("%s: %r and %r look like a normalization, which is not loaded; to use it: %s", name, mean, std, fix)


def load_state_dict(net: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Copy `state`, from the file called `name`, into `net`; OtherNetwork unless every key and shape fits."""
    expected = net.state_dict()
    versions = {**versions_of(expected), **versions_of(state)}  # safetensors has none
    # without the weights of heads that the network was built without, such as inception_v3's auxiliary one
    state = {key: tensor for key, tensor in state.items() if getattr(net, key.partition(".")[0], net) is not None}
    # torch does not require BatchNorm's counter either
    missing = [key for key in expected if key not in state and not key.endswith(BATCH_COUNTER)]
    unexpected = [key for key in state if key not in expected]
    parts = [f"{kind} {_some(keys)}" for kind, keys in (("it lacks", missing), ("it has unknown", unexpected)) if keys]
    if parts:
        raise OtherNetwork(f"{name} does not fit {type(net).__name__}: {'; '.join(parts)}; another model or variant?")
    for key, tensor in state.items():
        # refused before anything is copied: torch would stop after some tensors
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise InputError(f"{name} holds {key} as a sparse, quantized or meta tensor; it must be a dense one")
        if tensor.shape != expected[key].shape:
            raise OtherNetwork(
                f"{name} does not fit {type(net).__name__}: {key} must have shape {tuple(expected[key].shape)}, "
                f"but has {tuple(tensor.shape)} in the file; another model, variant, or number of classes?"
            )
        if _kind(tensor) != _kind(expected[key]):
            got, wanted = (str(each.dtype).removeprefix("torch.") for each in (tensor, expected[key]))
            raise InputError(
                f"{name} holds {key} as {got}; {type(net).__name__} needs {_kind(expected[key])}, {wanted}"
            )
    for key, _ in net.named_parameters(remove_duplicate=False):
        if key in state and not state[key].to(expected[key].dtype).isfinite().all():
            wanted = f"weights must be finite numbers in {str(expected[key].dtype).removeprefix('torch.')}"
            raise InputError(f"{name} holds nan or inf in {key}; {wanted}: take an earlier checkpoint")
    floats = {key: tensor for key, tensor in state.items() if tensor.is_floating_point()}
    others = {str(t.dtype)[6:] for key, t in floats.items() if t.dtype not in (expected[key].dtype, torch.float32)}
    if others:
        log.warning("%s holds weights in %s; they are converted to the network's type", name, ", ".join(sorted(others)))
    try:
        net.load_state_dict(with_versions({**expected, **state}, versions))
    except Exception as error:  # of a module's own code for older versions
        raise InputError(f"{name} cannot be loaded into {type(net).__name__}: {one_line(error)}") from error


def _kind(tensor: Tensor) -> str:
    """Return what the values of a tensor are: other widths of the same kind can be converted."""
    if tensor.is_floating_point():
        return "floats"
    return "complex numbers" if tensor.is_complex() else "bools" if tensor.dtype == torch.bool else "integers"


def is_state_dict(content: object) -> bool:
    """Return whether it is a mapping of names to tensors, and not an empty one."""
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    )


def _open(path: str | os.PathLike[str], name: str) -> BinaryIO:
    try:
        return regular(Path(path)).open("rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        start = "" if Path(path).is_absolute() else f" (relative paths start at {str(Path.cwd())!r})"
        best = Path(path) / "checkpoints" / "best.ckpt"
        hint = "" if not best.is_file() else f"; this is a run directory, whose best checkpoint is {str(best)!r}"
        raise InputError(f"cannot open {name}: {reason}{start}{hint}") from None


def _safetensors(file: BinaryIO) -> dict[str, Any]:
    content = file.read()
    tensors = load(content)  # raises where the header is damaged
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    settings = header.get("__metadata__", {}).get("nsr_settings")
    return tensors if settings is None else {"nsr_settings": json.loads(settings), "state_dict": tensors}


def _some(keys: Collection[object]) -> str:
    shown = ", ".join(repr(key) for key in list(keys)[:NAMES_SHOWN])
    return f"{shown} ({len(keys) - NAMES_SHOWN} more)" if len(keys) > NAMES_SHOWN else shown
