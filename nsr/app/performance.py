"""performance=auto: what makes training faster and changes its numbers by rounding alone, chosen before it starts.

The choice is a function of settings, network and kind of device, never of a timing, so every process makes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nsr.app.instantiation import Settings
from nsr.app.machine import keep_freed_memory, on_gpus
from nsr.attacks.folding import foldable_pairs
from nsr.compat import is_batch_norm
from nsr.evaluation.search import Search
from nsr.training.free import FreeClassifier
from nsr.training.module import RobustClassifier

FOLDABLE = ("32-true", "64-true", "bf16-mixed")  # a folded weight can exceed the range of float16


def choice_of(performance: Any) -> Any:
    """Return 'auto' for null, and 'off' for a bare off, which YAML reads as false."""
    return {None: "auto", False: "off"}.get(performance, performance)


def resumed_choice(settings: Settings, recorded: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the settings with what the run that a directory holds had chosen; a run without a choice has 'off'."""
    chosen: dict[str, Any] = {"performance": choice_of(settings["performance"])}
    if recorded is not None:
        chosen["performance"] = chosen["performance"] if "performance" in recorded else "off"
        if settings["channels_last"] == "auto":
            chosen["channels_last"] = recorded.get("channels_last", False)
    return {**settings, **chosen}


def uses_channels_last(settings: Settings, net: nn.Module) -> bool:
    """Return whether images and weights are stored pixel by pixel."""
    choice = settings.get("channels_last", False)
    if choice != "auto":
        return bool(choice)
    accelerator = settings["trainer"].get("accelerator", "auto")
    on_cpu = not on_gpus(settings) and (accelerator == "cpu" or not torch.backends.mps.is_available())
    is_faster = on_gpus(settings) or (on_cpu and torch.backends.mkldnn.is_available())
    is_chosen = settings["performance"] == "auto" and is_faster
    return is_chosen and any(isinstance(m, nn.Conv2d) for m in net.modules())


def choose_folding(settings: Settings, module: RobustClassifier, example: Tensor) -> None:
    """Set the module's `folded_pairs` and the line `performance_note` on what was chosen and why.

    On a CPU the process keeps its freed memory from now on, which changes no number.
    """
    if settings.get("performance", "off") == "off":
        return
    kept = "; freed memory kept for the next step" if not on_gpus(settings) and keep_freed_memory() else ""
    layout = "images stored channels-last" if uses_channels_last(settings, module.net) else "images in torch's layout"
    why = _not_folded(settings, module)
    if why is None:
        module.folded_pairs = foldable_pairs(module.net, example)
        count = len(module.folded_pairs)
        norms = sum(is_batch_norm(each) for each in module.net.modules())
        why = f"training's attack folds {count} of {norms} BatchNorm layers into the layer before"
    faster = "; trainer.precision=bf16-mixed is faster here, less precise" if _offers_bf16(settings) else ""
    module.performance_note = (
        f"performance=auto: {layout}; {why} (numbers change by rounding; off: as written){kept}{faster}"
    )


def choose_search(settings: Settings, module: RobustClassifier, example: Tensor) -> None:
    """Set how the attacks of tests and evaluations search, and the line on it of an evaluation."""
    choice, precision = settings["performance"], (settings.get("evaluation") or {}).get("precision", "float32")
    if choice == "off" and precision == "float32":
        return
    pairs = foldable_pairs(module.net, example) if choice == "auto" else []
    suite: Any = module.suite
    suite.search = Search(pairs, stop_early=choice == "auto", precision=precision)
    if "objective" not in settings:
        what = (
            f"fold {len(pairs)} BatchNorm layers and stop at an image's first success" if choice == "auto" else "search"
        )
        note = f"performance={choice}: attacks {what}, in {precision}; the network as written confirms each success"
        module.performance_note = note


def _not_folded(settings: Settings, module: RobustClassifier) -> str | None:
    """Return why the training attack runs the network as written; None where it need not."""
    if not (module.attacks or module.stabilizer is not None) or isinstance(module, FreeClassifier):
        return "no attack to fold BatchNorm for"
    if (mode := getattr(module.train_attack, "batch_norm", "eval")) != "eval":
        return f"BatchNorm not folded with train_attack.batch_norm={mode}"
    precision = settings["trainer"].get("precision", "32-true")
    return None if precision in FOLDABLE else f"BatchNorm not folded in {precision}"


def _offers_bf16(settings: Settings) -> bool:
    """Return whether the run is in float32 on hardware that multiplies bfloat16 faster."""
    if settings["trainer"].get("precision", "32-true") != "32-true":
        return False
    if on_gpus(settings):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # of torch 2.12
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
