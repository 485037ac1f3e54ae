"""docs/limits.md: the numbers in its sentences, from the rows of the plans on the results page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.common import DOCS, bullet, names, spread
from benchmarks.evidence import choice, claim2, claim3
from benchmarks.evidence.findings import Study, accuracy, by_arm, contrast
from benchmarks.evidence.plan import LONGER
from benchmarks.evidence.plan import settings as tuned_settings

PAGE = DOCS / "limits.md"
TEXT = Path(__file__).with_name("limits_text.md")
OPEN = "Open: no complete pair of runs yet."


def page(fashion: Study, trades: Study, long: Study, cifar: Study, digits: Study, methods: Study) -> str:
    """Return the page."""
    text = TEXT.read_text()
    for name, part in {**scope(fashion, long, cifar), **answers(fashion, trades, long, cifar, digits, methods)}.items():
        assert f"{{{name}}}" in text, name
        text = text.replace(f"{{{name}}}", part)
    return (
        "\n".join(part for line in text.splitlines() for part in (bullet(line[2:]) if line[:2] == "* " else [line]))
        + "\n"
    )


def scope(fashion: Study, long: Study, cifar: Study) -> dict[str, str]:
    plan = fashion.plan
    short = settings(cifar.plan["training"])
    training, evaluation = (settings(plan[name]) for name in ("training", "evaluation"))
    each = {f"{count} ({name})" for name, arms in plan["steps"].items() for count in set(arms.values())}
    return {
        "EPOCHS": training["trainer.max_epochs"],
        "STEPS": " or ".join(sorted(each, key=lambda text: int(text.split()[0]))),
        "WIDTH": training["model.width"],
        "LONG_STEPS": f"{steps(long):,}",
        "LONG_CLEAN": clean(long, "fast"),
        "CLEAN": clean(fashion, "pgd"),
        "NATURAL": clean(fashion, "natural"),
        "ATTACKS": f"APGD-CE ({evaluation['test_attacks.apgd_ce.steps']} steps), APGD-T "
        f"({evaluation['test_attacks.apgd_t.steps']} steps) and Square "
        f"({evaluation['test_attacks.square.queries']} queries)",
        "IMAGES": f"{int(evaluation['evaluation.n_examples']):,}",
        "GAP": gap(fashion),
        "CIFAR_STEPS": str(int(short["trainer.max_epochs"]) * int(short["trainer.limit_train_batches"])),
        "CIFAR_CLEAN": clean(cifar, "fast"),
        "COST": claim2.cost(fashion).partition("not equal cost: ")[2],
    }


def answers(fashion: Study, trades: Study, long: Study, cifar: Study, digits: Study, methods: Study) -> dict[str, str]:
    """Return the answers to the objections, each with its number, or that it is open."""
    everything = (fashion, trades, long, methods, cifar, digits)
    runs = [sum(row["stage"] == "confirm" for row in one.finished) for one in everything]
    seeds = len(fashion.plan["confirm"]["seeds"])
    natural = contrast(digits.arm("natural", "sns"), digits.arm("natural", "none"))
    each = settings_of_an_arm(fashion)
    return {
        "ANSWER_DATA": f"{sum(runs[:4])} confirmatory runs on Fashion-MNIST, {runs[4]} on CIFAR-10 (JPEG copy) "
        f"with ResNet-20, {runs[5]} on digits, worst case of three attacks. After {steps(long):,} steps instead of "
        f"{steps(fashion):,} on Fashion-MNIST: {tested(long)}. Still open: longer trainings of larger networks, "
        "other radii",
        "ANSWER_ATTACK": f"The reduced attacks are above AutoAttack {gap(fashion)}. {standard_contrasts(fashion)}",
        "ANSWER_GAIN": f"{seeds} seeds, a permutation test, Holm's correction over the primary contrasts, intervals "
        f"over seeds and images: {tested(fashion)}",
        "ANSWER_NATURAL": f"It is in no test; on digits {natural.text()} points (n = {natural.n}), for reference"
        if natural.n
        else OPEN,
        "ANSWER_SENSITIVE": f"{'; '.join(against(fashion, arm) for arm in ('random', 'least', 'all', 'activation'))}. "
        "Exploratory. Open: other fractions",
        "ANSWER_TUNING": f"Each arm had {each} on validation images, before the first test image",
        "ANSWER_CLEAN": f"{against(fashion, 'clean')}; at about equal cost {against(fashion, LONGER)}; after "
        f"{steps(long):,} steps {against(long, LONGER)}. Exploratory"
        if any(fashion.arm(objective, LONGER) for objective in fashion.plan["objectives"])
        else f"{against(fashion, 'clean')}. Exploratory",
        "ANSWER_WITHIN": within(*claim3.plans((fashion, digits), methods)),
    }


def settings(words: Iterable[str]) -> Mapping[str, str]:
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def steps(one: Study) -> int:
    """Return the training steps of one-step training alone in a plan."""
    return int(settings(one.plan["training"])["trainer.max_epochs"]) * int(one.plan["steps"]["fast"]["none"])


def tested(one: Study) -> str:
    """'pgd +0.22 [-0.17, +0.60], no gain was shown': the primary contrasts of a plan."""
    return names(
        f"{name} {found.text()}, {claim2.verdict(found, p)}" for name, (found, p) in claim2.primary(one).items()
    )


def clean(one: Study, objective: str) -> str:
    values = [accuracy(row, "clean", "last") for row in one.arm(objective, "none").values()]
    return f"{spread(values, 1)} %" if values else "not measured yet"


def gaps(fashion: Study) -> list[tuple[dict[str, Any], float]]:
    """Return (row, points of the reduced worst case above AutoAttack) of the runs with both."""
    both = [row for row in fashion.finished if row["stage"] == "standard"]
    return [(row, accuracy(row, "worst_case") - accuracy(row, "autoattack")) for row in both]


def gap(fashion: Study) -> str:
    found = [points for _, points in gaps(fashion)]
    if not found:
        return "not measured yet"
    return f"by {fmean(found):.2f} points on average and {max(found):.2f} at most in {len(found)} runs of 200 images"


def standard_contrasts(fashion: Study) -> str:
    """SNS minus none under AutoAttack's standard version beside the reduced attacks, mean over the seeds of both."""
    runs = by_arm(fashion.rows, "standard")
    parts = []
    for objective in choice.tested(fashion.plan):
        pair = [runs.get((objective, arm), {}) for arm in ("sns", "none")]
        whole, reduced = (contrast(*pair, attack) for attack in ("autoattack", "worst_case"))
        if whole.n:
            parts.append(f"{objective} {whole.difference:+.2f} and {reduced.difference:+.2f} (n = {whole.n})")
    return f"SNS minus none under AutoAttack and under the reduced attacks: {names(parts)}"


def settings_of_an_arm(fashion: Study) -> str:
    tuning = fashion.plan["tuning"]
    counts = {
        len(tuned_settings(fashion.plan, objective, arm))
        for objective in fashion.plan["objectives"]
        for arm in fashion.plan["arms"]
    }
    return f"{names(map(str, counts))} settings on {len(tuning['seeds'])} seeds"


def against(fashion: Study, arm: str) -> str:
    """'SNS minus random: pgd +0.73 [-3.08, +4.53]'"""
    found = {name: contrast(fashion.arm(name, "sns"), fashion.arm(name, arm)) for name in fashion.plan["objectives"]}
    said = names(f"{name} {each.text()} (n = {each.n})" for name, each in found.items() if each.n)
    return f"SNS minus `{arm}`: {said}"


def within(*studies: Study) -> str:
    complete = [one for one in studies if claim3.is_complete(one)]
    if not complete:
        return "Open: the runs are not complete"
    parts = [
        f"{one.plan['title']}, {each.measure}, {each.among}: {each.rho:+.2f}, Holm's p {p:.2g}"
        for one in complete
        for each, p in claim3.correlations(one.runs)
        if each.kind == "within"
    ]
    return f"{'; '.join(parts)}{'' if len(complete) == len(studies) else '. Open for the others'}"
