"""Checkpoints of nsr as an evaluation reads them: tensors, settings, and no classes but known ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from nsr.app.allowlist import admitted, plain_copy, targets
from nsr.app.composition import plain
from nsr.app.network import SIZES
from nsr.app.rules import NORMS, optional, patterns
from nsr.data import DataDescription
from nsr.errors import InputError, check_choice, check_epsilon
from nsr.models.weights import is_state_dict, load_state_dict, read_checkpoint

log = logging.getLogger(__name__)
OF_TRAINING = ("augmentation",)  # settings of the data that an evaluation has no use for


def with_checkpoint(config: DictConfig) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """Return the settings of an evaluation and its checkpoint, which fills in what the command left open.

    Only tensors and plain values are read; nsr.app.allowlist and config.trusted decide which classes are made. The
    configuration itself is not changed.

    Errors:
        InputError: nothing to evaluate, or a checkpoint that cannot be used.
    """
    config, saved = config.copy(), None
    if config.checkpoint is not None:
        saved, settings = read_settings(config.checkpoint)
        _check_threat_model(settings)
        with open_dict(config):
            for part in ("data", "model"):
                own = {key: value for key, value in (config.get(part) or {}).items() if value is not None}
                if "_target_" not in own:
                    theirs = read_part(part, settings, config.checkpoint, trusted=config.trusted)
                    config[part] = OmegaConf.merge(theirs, own)
            config.model.weights = None
            config.layers = config.layers if config.layers is not None else settings.get("layers")
            if config.norm in (None, settings["norm"]):
                config.epsilon = config.epsilon if config.epsilon is not None else settings["epsilon"]
            config.norm = config.norm or settings["norm"]
    elif "_target_" not in (config.get("data") or {}) or (config.get("model") or {}).get("weights") is None:
        raise InputError(
            "nothing to evaluate: give checkpoint=RUN/checkpoints/best.ckpt, or model=NAME model.weights=FILE data=NAME"
        )
    config.norm = config.norm or "linf"
    if config.epsilon is None:
        config.epsilon = OmegaConf.select(config, f"data.epsilon.{config.norm}")
        if config.epsilon is None:
            raise InputError(f"the data have no customary epsilon for {config.norm}; give epsilon=...")
    return plain(config), saved


def read_settings(path: Any) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Return a checkpoint of nsr and the settings of its run, all plain values; InputError where it is none."""
    saved = read_checkpoint(path)
    if not isinstance(saved, Mapping) or not {"nsr_settings", "state_dict"} <= set(saved):
        raise InputError(
            f"{str(path)!r} is no checkpoint of nsr; for a plain state_dict give "
            "model=NAME model.weights=FILE data=NAME"
        )
    settings = plain_copy(saved["nsr_settings"], "settings")
    if not isinstance(settings, dict):
        raise InputError(f"{str(path)!r} is no checkpoint of nsr: its settings are no mapping")
    return saved, settings


def read_part(part: str, settings: Mapping[str, Any], path: Any, *, trusted: Sequence[str]) -> dict[str, Any]:
    """Return the 'model' or 'data' of a checkpoint's settings, to be made; log the names that `trusted` allows."""
    own = settings.get(part)
    if part == "data" and isinstance(own, Mapping):
        own = {name: value for name, value in own.items() if name not in OF_TRAINING}
    theirs = admitted(part, own, trusted=list(trusted))
    for name in targets(theirs):
        if name in trusted:
            log.info("%s of the checkpoint %r is imported and called, as trusted allows", name, str(path))
    return theirs


def load_network(
    net: nn.Module, saved: Mapping[str, Any], path: Any, *, description: DataDescription | None = None
) -> None:
    """Load the weights of a checkpoint of nsr into `net`.

    Errors:
        InputError: they are another network's, or were trained on data unlike those of the description.
    """
    everything = saved["state_dict"] if isinstance(saved["state_dict"], Mapping) else {}
    own = {key: value for key, value in everything.items() if isinstance(key, str) and key.startswith("net.")}
    state = {key.removeprefix("net."): value for key, value in own.items()}
    if not is_state_dict(state):
        raise InputError(f"{str(path)!r} is no checkpoint of nsr: its state_dict is no mapping of names to tensors")
    try:
        load_state_dict(net, state, repr(str(path)))
    except InputError as error:
        theirs = saved["nsr_settings"].get("data") if description is not None else None
        if not isinstance(theirs, Mapping):
            raise
        sizes = ((name, theirs.get(name), getattr(description, name)) for name in SIZES)
        unlike = [f"{name} was {before} and is {now}" for name, before, now in sizes if before != now]
        if not unlike:
            raise
        raise InputError(
            f"{str(path)!r} was trained on other data: {'; '.join(unlike)}; leave data=NAME out, or evaluate a "
            f"checkpoint that was trained on these data ({error})"
        ) from error


def _check_threat_model(settings: Mapping[str, Any]) -> None:
    """Every attack gets these, and Hydra makes it too: a number, a name, names of layers and nothing else."""
    try:
        norm = check_choice("norm", settings.get("norm"), NORMS)
        check_epsilon("epsilon", settings.get("epsilon"), norm=norm)
        optional(patterns)("layers", settings.get("layers"))
    except InputError as error:
        raise InputError(f"the checkpoint's {error}") from error
