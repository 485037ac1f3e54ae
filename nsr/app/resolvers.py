"""What the files in conf/ compute: resolvers that they call as ${nsr.NAME:...}."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import ListConfig, OmegaConf

from nsr.errors import InputError, fraction
from nsr.run.processes import local_processes, machines


def is_sweep() -> bool:
    """Return whether this process runs the jobs of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def evaluation_directory(checkpoint: str | None) -> str:
    """Return RUN/evaluations beside RUN/checkpoints/X.ckpt, else runs/evaluations."""
    if checkpoint and (folder := Path(checkpoint).absolute().parent).name == "checkpoints":
        return str(folder.parent / "evaluations")
    return "runs/evaluations"


def evaluation_name(checkpoint: str | None) -> str:
    """Return 'NAME best' for runs/NAME/DATE/checkpoints/best.ckpt or NAME/checkpoints/best.ckpt, else its own name."""
    path = Path(str(checkpoint or "evaluation")).absolute()  # a number is refused later, by its name
    if path.parent.name != "checkpoints":
        return path.stem
    run = path.parents[1]
    return f"{run.parent.name if re.match(r'[0-9]{4}-[0-9]{2}-[0-9]{2}_', run.name) else run.name} {path.stem}"


def times(factor: float, value: Any) -> Any:
    """Return a multiple of a number or a fraction such as 8/255; anything else unchanged, to be refused by its name."""
    try:
        number = fraction("", value)
    except InputError:
        return value
    return factor * number if isinstance(number, (int, float)) and not isinstance(number, bool) else value


def fraction_of(part: float, epochs: int) -> Any:
    """Return the epoch at that fraction of the training, at least 1."""
    return max(1, round(part * epochs)) if isinstance(epochs, int) else epochs


def epochs(max_epochs: Any, replays: Any) -> Any:
    """Return the epochs of the Trainer: free training replays each batch, so takes fewer (Shafahi et al. 2019)."""
    are_counts = all(isinstance(value, int) and value > 0 for value in (max_epochs, replays))
    return -(-max_epochs // replays) if are_counts else max_epochs


def sweep() -> str | None:
    """Return the name of a sweep's directory, the same for all its jobs; None for a single run."""
    return Path(HydraConfig.get().sweep.dir).absolute().name if is_sweep() else None


def chosen(*groups: str) -> ListConfig:
    """Return the choices of some groups of conf/, each name once, without groups that were left out."""
    return OmegaConf.create([*dict.fromkeys(_choices(groups))])  # --resolve fails on a plain list


def run_name(seed: int) -> str:
    """Return DATA_MODEL_OBJECTIVE_STABILIZER_seedN."""
    return "_".join([*_choices(("data", "model", "objective", "stabilizer")), f"seed{seed}"])


def _choices(groups: Sequence[str]) -> list[str]:
    choices = HydraConfig.get().runtime.choices
    return [str(choices[group]) for group in groups if choices.get(group) is not None]


def register() -> None:
    """Let OmegaConf know them; without, conf/ cannot be composed."""
    for resolver in (
        *(evaluation_directory, evaluation_name, times, fraction_of, epochs, sweep, chosen, run_name),
        *(local_processes, machines),
    ):
        OmegaConf.register_new_resolver(f"nsr.{resolver.__name__}", resolver, replace=True)
