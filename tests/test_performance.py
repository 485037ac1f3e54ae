"""performance=auto: chosen before a run, stored with it, taken again when it resumes."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from benchmarks.rounding import nudge
from nsr.app.performance import resumed_choice
from nsr.run.directory import changes
from tests.conftest import ROOT, TINY, job, made, read_json


def test_performance_is_chosen_stored_and_taken_again():
    run = made("train", *TINY)  # the default
    assert len(run.module.folded_pairs) == 3
    assert run.record["channels_last"] is torch.backends.mkldnn.is_available()
    assert sum("folds 3 of 3 BatchNorm layers" in line for _, line in run.notes) == 1
    settings = {"performance": "auto", "channels_last": "auto"}
    assert resumed_choice(settings, None) == settings
    assert resumed_choice(settings, {"performance": "auto", "channels_last": True})["channels_last"] is True
    before = resumed_choice(settings, {"channels_last": False})  # a run of before there was a choice
    assert before == {"performance": "off", "channels_last": False}
    assert changes({"channels_last": False}, before) == {}
    assert list(changes({"performance": "off"}, {"performance": "auto"})) == ["performance"]


def test_a_network_with_lazy_layers_is_made(tmp_path, monkeypatch):
    (tmp_path / "lazy_net.py").write_text(
        "from torch import nn\n"
        "def net(classes):\n"
        "    layers = nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes)\n"
        "    return nn.Sequential(*layers)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    net = made("train", "model=custom", "model._target_=lazy_net.net", "test_attacks=[clean]").module.net
    assert net(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_an_evaluation_stores_images_as_its_run_did(best):
    assert made("evaluate", best).record["channels_last"] is torch.backends.mkldnn.is_available()
    assert made("evaluate", best, "channels_last=false").record["channels_last"] is False


@pytest.mark.slow
def test_the_users_own_layout_and_what_is_not_folded():
    off = made("train", *TINY, "performance=off", "channels_last=true")
    assert (off.module.folded_pairs, off.module.performance_note) == ([], None)
    assert off.record["channels_last"] is True  # the user's own wins
    trained = made("train", *TINY, "train_attack.batch_norm=batch")
    assert trained.module.folded_pairs == []
    assert "BatchNorm not folded with train_attack.batch_norm=batch" in trained.module.performance_note


def test_the_control_of_the_rounding_benchmark_moves_each_weight_by_one_unit_in_the_last_place():
    values = torch.tensor([1.0, -1.0, 0.3, 0.0])
    nudged = values.clone()
    nudge({"weight": nudged})
    spacing = torch.tensor([2.0**-24, 2.0**-24, 2.0**-25, 2.0**-149])  # of float32 on that side
    assert torch.equal(nudged - values, spacing * torch.tensor([-1, 1, -1, 1]))


@pytest.mark.slow
def test_off_gives_the_metrics_of_before_there_was_a_choice(tmp_path):
    """Those of the version before, byte-equal on one machine."""
    from nsr.app.train import train

    train(job("train", tmp_path / "run", *TINY, "performance=off"))
    metrics = read_json(tmp_path / "run" / "metrics.json")
    assert metrics["validation/clean_cross_entropy"] == pytest.approx(2.2915613651275635, rel=1e-6)
    assert metrics["validation/robust_cross_entropy"] == pytest.approx(2.3261826038360596, rel=1e-6)
    accuracies = {name: metrics[f"test/{name}_accuracy"] for name in ("clean", "fgsm", "pgd")}
    assert accuracies == {"clean": 0.16, "fgsm": 0.062, "pgd": 0.088}


FAULTS = """
import resource, sys, torch
from nsr.app.machine import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else False)
def step():
    kept = [torch.ones(2**20) for _ in range(20)]
    return sum(each.sum() for each in kept)
for _ in range(3): step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5): step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_is_kept_unless_the_user_has_settings_of_their_own():
    def run(choice: str, **variables: str) -> tuple[str, int]:
        others = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
        command = [sys.executable, "-c", FAULTS, choice]
        done = subprocess.run(
            command, env={**others, **variables}, cwd=ROOT, capture_output=True, text=True, check=True
        )
        kept, faults = done.stdout.split()
        return kept, int(faults)

    (_, plain), (kept, few), (own, _) = run("plain"), run("keep"), run("keep", MALLOC_ARENA_MAX="2")
    assert (kept, own) == ("True", "False")
    assert few < plain / 2
