"""The facts of a run in words, from its settings: threat model, network, data, recipe, seed, commit, times, device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nsr.comparison.names import attack_heading
from nsr.plots.style import NORMS
from nsr.report.files import RunFiles

UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def threat_model(settings: Mapping[str, Any]) -> str:
    """Return 'L-infinity, epsilon 8/255 (pixels in [0, 1])'."""
    several = settings.get("threat_models")
    models = several if isinstance(several, Mapping) else {settings.get("norm"): settings.get("epsilon")}
    return "; ".join(
        f"{NORMS.get(str(norm), norm)}, epsilon {epsilon} (pixels in [0, 1])" for norm, epsilon in models.items()
    )


def radius_in_words(settings: Mapping[str, Any]) -> str:
    """Return 'L-infinity epsilon 8/255' of a threat model's or an attack's settings."""
    norm = settings.get("norm")
    return f"{NORMS.get(str(norm), norm)} epsilon {settings.get('epsilon')}"


def validation_attack(settings: Mapping[str, Any]) -> str:
    """Return 'PGD-10, L-infinity epsilon 8/255', or 'the validation attack' where its settings are not known."""
    attack = settings.get("validation_attack")
    if not isinstance(attack, Mapping) or "epsilon" not in attack:
        return "the validation attack"
    choices = settings.get("choices")
    name = choices.get("validation_attack") if isinstance(choices, Mapping) else None
    return f"{attack_heading(str(name or 'validation attack'), attack)}, {radius_in_words({**settings, **attack})}"


def facts(run: RunFiles) -> dict[str, str]:
    """Return {name: text}, without what is unknown."""
    settings, machine = run.run.settings, run.mapping("machine.json")
    timing = run.mapping("timing.json")
    choices = settings.get("choices")
    choice = choices if isinstance(choices, Mapping) else {}
    found = {
        "status": run.run.status + (f": {run.run.detail}" if run.run.detail else ""),
        "threat model": threat_model(settings) if settings.get("norm") else "",
        "search": _search(run.run.measured),
        "network": _choice(settings, choice, "model"),
        "data": _data(settings, choice),
        "recipe": _recipe(settings, choice),
        "seed": str(settings.get("seed", "")),
        "checkpoint": _checkpoint(run),
        "duration": duration(timing.get("fit")) + _epochs(timing) if timing.get("fit") else "",
        "device": str(machine.get("device") or ""),
        "software": str(machine.get("software") or ""),
        "commit": str(machine.get("commit") or ""),
    }
    return {name: text for name, text in found.items() if text}


def _search(measured: Mapping[str, Any]) -> str:
    options = measured.get("evaluation")
    is_bf16 = isinstance(options, Mapping) and options.get("precision") == "bf16"
    return "attacks search in bf16, every success confirmed in float32" if is_bf16 else ""


def duration(seconds: Any) -> str:
    """Return '2.5 h' or '48 s', "" where it is no number."""
    if not isinstance(seconds, (int, float)):
        return ""
    for size, unit in UNITS:
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _epochs(timing: Mapping[str, Any]) -> str:
    epochs = timing.get("epochs")
    if not isinstance(epochs, list) or not epochs:
        return ""
    return f" for {len(epochs)} epoch{'s' * (len(epochs) > 1)}, validation included"


def _choice(settings: Mapping[str, Any], choice: Mapping[str, Any], group: str) -> str:
    own = settings.get(group)
    target = str(own.get("_target_", "")) if isinstance(own, Mapping) else ""
    name, weights = str(choice.get(group) or ""), own.get("weights") if isinstance(own, Mapping) else None
    shown = f"{name} ({target})" if name and target else name or target
    return f"{shown}, weights {weights}" if weights and shown else shown


def _data(settings: Mapping[str, Any], choice: Mapping[str, Any]) -> str:
    own = settings.get("data")
    if not isinstance(own, Mapping):
        return ""
    size = own.get("image_size")
    size = f"{size} x {size}" if isinstance(size, int) else " x ".join(map(str, size)) if isinstance(size, list) else ""
    parts = [_choice(settings, choice, "data"), f"{own.get('channels')} x {size}" if size else ""]
    parts.append(f"{own['classes']} classes" if own.get("classes") else "")
    return ", ".join(filter(None, parts))


def _recipe(settings: Mapping[str, Any], choice: Mapping[str, Any]) -> str:
    if not settings.get("objective"):
        return ""
    parts = [f"experiment={choice['experiment']}"] if choice.get("experiment") else []
    parts.append(f"objective {choice.get('objective') or _choice(settings, choice, 'objective')}")
    stabilizer = settings.get("stabilizer")
    if isinstance(stabilizer, Mapping) and stabilizer.get("_target_"):
        name = choice.get("stabilizer") or _choice(settings, choice, "stabilizer")
        parts.append(f"stabilizer {name}, weight {stabilizer.get('weight', '?')}")
    else:
        parts.append("no stabilizer")
    return ", ".join(parts)


def _checkpoint(run: RunFiles) -> str:
    if run.is_evaluation:
        return str(run.run.settings.get("checkpoint") or "")
    best = run.run.best_epoch
    chosen = "by validated robust accuracy"
    return f"best.ckpt of epoch {best} of {run.run.epoch}, chosen {chosen}" if best is not None else ""
