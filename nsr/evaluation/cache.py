"""The result cache: a file for each attack and batch of images, so that a killed evaluation resumes.

FOLDER/evaluation.json identifies the evaluation; FOLDER/ATTACK-FINGERPRINT/NUMBER-FINGERPRINT.json holds the outcome of
a batch, found by the content of its images, labels and settings. Files are written under another name and renamed, and
hold a checksum: one that is damaged all the same counts as missing.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nsr.errors import InputError, check_finite_logits
from nsr.modes import frozen_parameters, full_precision, network_mode, unchanged_buffers
from nsr.randomness import seeded
from nsr.run.files import check_can_be_made, regular, write_json

RESPONSE_IMAGES = 8
TOLERANCE = 1e-4  # of the largest logit or gradient: other machines round differently


class Response(NamedTuple):
    """What a network gives on a few images, float32: equal weights alone do not make two networks equal."""

    logits: Tensor  # (image, class)
    gradient: Tensor  # (image, channel, height, width), of a weighted sum of the logits


class OtherEvaluation(InputError):
    """A folder that caches another evaluation."""


class ResultCache:
    """The cached batches of one evaluation.

    Args:
        folder: of the files; made where it is missing.
        identity: plain values that must be equal for a result to be reused: weights, seed, layers.
        attacks: {name: its settings}; a result is reused for these settings alone.
        response: of the network, which must agree to 1e-4; None: not compared.
        key: cached results are reused only under the same key; a secret one excludes results that another user planted.

    Errors:
        InputError: the folder is a file, cannot be made, or caches another evaluation; the difference is named.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        attacks: Mapping[str, Any],
        response: Response | None = None,
        *,
        key: str = "",
    ):
        self.folder = folder
        record = folder / "evaluation.json"
        written = _read(record)
        if written is None:
            written = {**identity, "response": {} if response is None else _encoded(response)}
            try:
                _write(record, written)
            except OSError as error:
                wanted = f"it must be a folder that can be made ({error.strerror})"
                raise InputError(f"evaluation.cache is {str(folder)!r}; {wanted}") from None
        _check_same(written, identity, response, folder)
        # the whole record: results under one that was damaged and written anew are not found again
        of = [written, key] if key else [written]
        self.places = {name: folder / f"{name}-{fingerprint([*of, own])[:16]}" for name, own in attacks.items()}

    def read(self, attack: str, batch: str) -> Any:
        """Return the cached result of a batch, None where there is none or its file is damaged."""
        return _read(self.places[attack] / f"{batch}.json")

    def write(self, attack: str, batch: str, result: Any) -> None:
        """Cache the result of a batch."""
        _write(self.places[attack] / f"{batch}.json", result)


def check_cache(folder: Path, identity: Mapping[str, Any], response: Response) -> None:
    """Raise InputError where a `ResultCache` could not be made in the folder; nothing is made."""
    check_can_be_made("evaluation.cache", folder.absolute())
    if (written := _read(folder / "evaluation.json")) is not None:
        _check_same(written, identity, response, folder)


def fitting_cache(
    folder: Path, identity: Mapping[str, Any], attacks: Mapping[str, Any], response: Response, *, key: str = ""
) -> ResultCache:
    """Return the cache in the first of FOLDER, FOLDER-2, ... that is new or of a network that responds equally."""
    for number in itertools.count(2):
        try:
            return ResultCache(folder, identity, attacks, response, key=key)
        except OtherEvaluation:
            folder = folder.with_name(f"{folder.name.partition('-')[0]}-{number}")
    raise AssertionError


def fingerprint(content: Any) -> str:
    """Return a hash of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def network_fingerprint(net: nn.Module) -> str:
    """Return a hash of all weights and buffers."""
    return _tensors_fingerprint(net.state_dict())


def batch_fingerprint(number: int, images: Tensor, labels: Tensor) -> str:
    """Return the name of a batch: its number, which seeds its draws, and a hash of its pixels and labels."""
    return f"{number:05}-{_tensors_fingerprint({'images': images, 'labels': labels})}"


def network_response(net: nn.Module, images: Tensor) -> Response:
    """Return the network's logits and input gradient in float32 and eval mode; draws are seeded, nothing is changed.

    Args:
        images: (image, channel, height, width) in [0, 1].

    Errors:
        InputError: logits that are not finite.
    """
    inputs = images.to(next(net.parameters(), images).device).clone().requires_grad_()
    restored = seeded(0), unchanged_buffers(net), network_mode(net, "eval"), frozen_parameters(net)
    with restored[0], restored[1], restored[2], restored[3], full_precision(inputs.device), torch.enable_grad():
        logits = net(inputs)
        check_finite_logits(logits)
        # classes have different weights: the plain sum of log-probabilities, say, would hide a shift
        total = (logits * torch.arange(1, logits.shape[-1] + 1, device=logits.device)).sum()
        gradient = None
        if total.requires_grad:
            (gradient,) = torch.autograd.grad(total, inputs, allow_unused=True)
    return Response(logits.detach().cpu(), torch.zeros_like(images) if gradient is None else gradient.cpu())


def by_content(settings: Any, folder: Path) -> Any:
    """Return settings in which hashes replace the path of each file and folder, and stand beside each `_target_`.

    Args:
        settings: plain values.
        folder: that relative paths start from.
    """
    if isinstance(settings, Mapping):
        own = {str(name): by_content(value, folder) for name, value in settings.items()}
        return {**own, "source": _source(str(settings["_target_"]))} if "_target_" in settings else own
    if isinstance(settings, (list, tuple)):
        return [by_content(value, folder) for value in settings]
    if isinstance(settings, str) and settings:
        path = os.path.join(folder, os.path.expanduser(settings))
        if os.path.isfile(path):
            return {"content": _file_fingerprint(path)}
        if os.path.isdir(path):
            files = (os.path.join(place, name) for place, _, names in os.walk(path) for name in names)
            return {os.path.relpath(file, path): _file_fingerprint(file) for file in files if os.path.isfile(file)}
    return settings


def _source(target: str) -> str | None:
    """Return a hash of the file that defines an imported class or function."""
    module, _, name = target.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    path = getattr(sys.modules.get(getattr(found, "__module__", None) or module), "__file__", None)
    return _file_fingerprint(path) if path and os.path.isfile(path) else None


def _file_fingerprint(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _tensors_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"checksum": fingerprint(content), "content": content})


def _read(path: Path) -> Any:
    """Return the content of a file; None where it is missing or damaged."""
    try:
        written = json.loads(regular(path).read_text(encoding="utf-8"))
        return written["content"] if written["checksum"] == fingerprint(written["content"]) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _encoded(response: Response) -> dict[str, str]:
    parts = response._asdict().items()
    return {name: base64.b64encode(values.float().numpy().tobytes()).decode() for name, values in parts}


def _difference(written: str, values: Tensor) -> float:
    """Return the largest difference from the values as they were written, as a fraction of the largest value."""
    before = torch.frombuffer(bytearray(base64.b64decode(written)), dtype=torch.float32)
    if len(before) != values.numel():
        return float("inf")
    largest = values.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
    return float((before - values.float().flatten()).abs().amax() / largest)


def _check_same(
    written: Mapping[str, Any], identity: Mapping[str, Any], response: Response | None, folder: Path
) -> None:
    found = {name: (written.get(name), identity.get(name)) for name in {**written, **identity} if name != "response"}
    different = [name for name, (before, now) in found.items() if before != now]
    fix = "set evaluation.cache to another folder, or leave it out"
    if different:
        before, now = found[different[0]]
        raise OtherEvaluation(
            f"{folder} caches another evaluation: {', '.join(different)} differ ({different[0]} was {before!r} and "
            f"is {now!r}); {fix}"
        )
    for name, values in ({} if response is None else response._asdict()).items():
        if not (difference := _difference(written["response"].get(name, ""), values)) <= TOLERANCE:
            raise OtherEvaluation(
                f"{folder} caches another network with the same weights: {name} on the first {len(values)} images "
                f"differs by {difference:.2g} of the largest (allowed: {TOLERANCE:g}); {fix}"
            )
