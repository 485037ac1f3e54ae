"""What a checkpoint of nsr may say when it is measured: its tensors, its settings, and of classes none but nsr's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from nsr.configuration import flat
from nsr.errors import InputError
from nsr.models.weights import load_state_dict, read_checkpoint


def take_over_checkpoint(config: DictConfig) -> Mapping[str, Any] | None:
    """Reads config.checkpoint and fills in what the command left open: data, model, threat model.

    Only tensors and plain values are read, and of the classes that the checkpoint names none but those of nsr.
    """
    saved: Mapping[str, Any] | None = None
    if config.checkpoint is not None:
        saved, settings = read_settings(config.checkpoint)
        with open_dict(config):
            for part, source in (("data", "nsr.data."), ("model", "nsr.models.")):
                own = {key: value for key, value in (config.get(part) or {}).items() if value is not None}
                if "_target_" not in own:
                    check_source(part, settings[part], source)
                    config[part] = OmegaConf.merge(settings[part], own)
            config.model.weights = None
            config.layers = config.layers if config.layers is not None else settings.layers
            if config.norm in (None, settings.norm):
                config.epsilon = config.epsilon if config.epsilon is not None else settings.epsilon
            config.norm = config.norm or settings.norm
    elif config.get("model") is None or "_target_" not in config.data or config.model.get("weights") is None:
        raise InputError(
            "nothing to evaluate: give checkpoint=RUN/checkpoints/best.ckpt, or model=NAME model.weights=FILE data=NAME"
        )
    config.norm = config.norm or "linf"
    if config.epsilon is None:
        config.epsilon = config.data.epsilon[config.norm]
    return saved


def read_settings(path: Any) -> tuple[Mapping[str, Any], DictConfig]:
    """A checkpoint of nsr and the settings of its run; InputError where it is none, or where they look something up."""
    saved = read_checkpoint(path)
    if not isinstance(saved, Mapping) or not {"nsr_settings", "state_dict"} <= set(saved):
        raise InputError(
            f"{str(path)!r} is no checkpoint of nsr; for a plain state_dict give "
            "model=NAME model.weights=FILE data=NAME"
        )
    if any("${" in str(value) for _, value in flat(saved["nsr_settings"])):
        raise InputError(f"the checkpoint {str(path)!r} has settings that look something up: refused")
    settings = OmegaConf.create(dict(saved["nsr_settings"]))
    assert isinstance(settings, DictConfig)
    return saved, settings


def load_network(net: nn.Module, saved: Mapping[str, Any], path: Any) -> None:
    """The weights of a checkpoint of nsr into `net`, InputError where they are another network's."""
    state = {key.removeprefix("net."): value for key, value in saved["state_dict"].items() if key.startswith("net.")}
    load_state_dict(net, state, repr(str(path)))


def check_source(part: str, settings: Mapping[str, Any], source: str) -> None:
    """A checkpoint may come from anywhere; what it names is imported and called only where it is ours."""
    targets = [value for name, value in flat(settings) if name.rpartition(".")[2] == "_target_"]
    if len(targets) != 1 or not str(targets[0]).startswith(source) or str(targets[0]).count(".") != source.count("."):
        raise InputError(
            f"the checkpoint's {part} is {', '.join(map(str, targets))}, which is not one of nsr's; give {part}=NAME "
            "on the command line if you trust it"
        )
