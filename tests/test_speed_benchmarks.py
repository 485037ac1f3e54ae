"""The benchmarks of speed compare equal work, and docs/performance.md has what their rows have."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from benchmarks import peers, performance_page
from benchmarks.step_times import ATTACK_STEPS, FLOAT32, TINY, nsr_step
from tests.conftest import ROOT


def test_the_page_is_made_from_the_rows():
    assert performance_page.PAGE.read_text() == performance_page.page()


def test_rows_compare_equal_work():
    """The same training pass and as many attack steps; attacks about as strong."""
    for row in performance_page.rows("peers"):
        accuracies = row["robust_accuracy"]
        assert max(accuracies.values()) - accuracies["nsr"] <= 0.02
        assert accuracies["nsr"] - min(accuracies.values()) <= 0.02
        assert abs(accuracies["nsr"] - accuracies["plain loop"]) <= 0.01
        for name in ("nsr", "nsr, performance=off", "plain loop", "torchattacks"):
            assert row["passes"][name] == {"forward": ATTACK_STEPS + 1, "backward": ATTACK_STEPS + 1}, name


def test_passes_are_counted():
    expected = {"forward": ATTACK_STEPS + 1, "backward": ATTACK_STEPS + 1}
    assert peers.counted(*peers.peer_step(TINY, peers.plain_pgd, FLOAT32)) == expected
    assert peers.counted(*nsr_step(TINY, stabilizes=False, folds=True)) == expected
    assert peers.counted(*nsr_step(TINY, stabilizes=True))["forward"] == ATTACK_STEPS + 2


def test_the_plain_loop_stays_in_the_ball():
    net, images, labels = peers.fixed_network()
    adversarial = peers.plain_pgd(net, images[:20], labels[:20], **peers.DIGITS)
    assert (adversarial - images[:20]).abs().max() == pytest.approx(peers.DIGITS["epsilon"], abs=1e-6)
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert not torch.equal(net(adversarial).argmax(1), net(images[:20]).argmax(1))


@pytest.mark.parametrize("words", [["ResNet20", "float16"], ["ResNet20", "float32", "1"]])
@pytest.mark.slow
def test_a_wrong_argument_is_one_line(words):
    command = [sys.executable, "-m", "benchmarks.peers", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
