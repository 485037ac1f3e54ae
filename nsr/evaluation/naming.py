"""What the rows of an evaluation are called on the screen."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from nsr.evaluation.suite import BESIDE

NORMS = {"linf": "L-infinity", "l2": "L2", "l1": "L1"}


def shown_attacks(config: DictConfig) -> dict[str, str]:
    """{suite entry: how it is called on the screen}."""
    shown = {}
    for name, attack in config.suite.items():
        if attack is None:
            shown[str(name)] = str(name)
        else:
            beside = "curve: " if str(name).startswith(BESIDE) else ""
            shown[str(name)] = f"{beside}{_kind(attack)}, {NORMS[attack.norm]} {_radius(attack.epsilon)}"
    return {**shown, "worst_case": "worst case of all"}


def _kind(attack: DictConfig) -> str:
    kind = attack._target_.rpartition(".")[2]
    if kind == "AutoAttack":
        return f"AutoAttack, {attack.version}" if attack.version != "custom" else ", ".join(attack.attacks)
    if kind == "TransferAttack":
        return f"PGD-{attack.attack.steps} from {len(attack.checkpoints)} surrogates"
    if kind == "UniformDraws":
        return f"{attack.draws} uniform draws"
    if kind == "Momentum":
        return f"MI-FGSM-{attack.steps}"
    if kind == "AdaptiveAttack":
        return f"{'adaptive' if attack.cross_entropy else 'feature'} PGD-{attack.steps}"
    if attack.steps == 1 and not attack.random_start:
        return "FGSM"
    loss = {"cross_entropy": "", "margin": " on the margin", "kl": " on KL"}[attack.loss]
    restarts = f", {attack.restarts} restarts" if attack.restarts > 1 else ""
    return f"PGD-{attack.steps}{loss}{restarts}"


def _radius(epsilon: Any) -> str:
    return f"{epsilon:.4g}" if isinstance(epsilon, float) else str(epsilon)
