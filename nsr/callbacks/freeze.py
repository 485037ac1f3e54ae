"""Frozen parts of a pretrained network: neither their weights nor their BatchNorm statistics change."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import pytorch_lightning as pl
from torch import nn

from nsr.errors import InputError, did_you_mean


class Freeze(pl.Callback):
    """Keep modules as they are: no gradients of their parameters, eval mode in every training pass.

    Args:
        parts: names or patterns of the network's modules, 'layer1' or 'layer*.0'; all inside them is frozen.
    Errors:
        InputError: no list of texts; a pattern without a module, or nothing left to train.
    """

    def __init__(self, *, parts: Sequence[str]):
        if isinstance(parts, str) or not parts or not all(isinstance(part, str) for part in parts):
            raise InputError(f"callbacks.freeze.parts is {parts!r}; it must be a list of modules, such as [conv1, bn1]")
        self.parts = list(parts)

    def frozen(self, module: Any) -> list[nn.Module]:
        """Return the modules of the network behind its normalization that the patterns match."""
        found = {name: each for name, each in module.net.net.named_modules() if name}
        for part in self.parts:
            if not any(fnmatchcase(name, part) for name in found):
                names = ", ".join(list(found)[:4])
                hint = did_you_mean(part, found)
                raise InputError(f"callbacks.freeze.parts: no module matches {part!r}{hint}; there are {names}, ...")
        return [each for name, each in found.items() if any(fnmatchcase(name, part) for part in self.parts)]

    def check(self, module: pl.LightningModule, epochs: int) -> None:
        """Raise InputError where a pattern matches no module, or the parts are the whole network."""
        kept = {id(parameter) for part in self.frozen(module) for parameter in part.parameters()}
        if all(id(parameter) in kept for parameter in module.parameters()):
            raise InputError(f"callbacks.freeze.parts is {self.parts}, the whole network; leave a part to train")

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            for part in self.frozen(pl_module):
                part.requires_grad_(False)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        for part in self.frozen(pl_module):
            part.eval()
