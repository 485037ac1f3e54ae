"""What an evaluation costs: the default suite on the 500 test digits, and AutoAttack beside a script without nsr.

    python -m benchmarks.evaluation CHECKPOINT [IMAGES]

Times are without start-up, on as many threads as there are cores. The script and nsr take turns on the same images
(IMAGES of them, default 250, one chunk) with the same seed; the ratio is of their medians, and their outcomes have to
be equal image by image. A row is appended to benchmarks/results/evaluation.jsonl.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from omegaconf import DictConfig, OmegaConf

from nsr.app.build import build_classifier, build_data
from nsr.app.checkpoints import load_network, read_settings
from nsr.attacks import AutoAttack
from nsr.errors import fraction
from nsr.evaluation.cache import Chunks
from nsr.evaluation.suite import Suite

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "evaluation.jsonl"
REPEATS = 3


def suite_seconds(checkpoint: str) -> float:
    """The default suite through the user's own command: from the first chunk to the last, as its files tell."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, str(ROOT / "evaluate.py"), f"checkpoint={checkpoint}", "alarms.judge=false"]
        subprocess.run([*command, f"hydra.run.dir={name}/run"], check=True, capture_output=True)
        parts = [path.stat().st_mtime for path in Path(name).rglob("chunks/*/*/*.json")]
        begun = min(path.stat().st_mtime for path in Path(name).rglob("chunks/*/evaluation.json"))
        return max(parts) - begun


def by_hand(net: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, epsilon: float) -> torch.Tensor:
    """AutoAttack as its README has it."""
    from pyautoattack import AutoAttack as Original

    attack = Original(net, norm="Linf", eps=epsilon, seed=0, version="standard")
    adversarial, _ = attack.run_standard_evaluation(images, labels, batch_size=len(images))
    with torch.no_grad():
        return net(adversarial).argmax(1) == labels


def through_nsr(net: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, epsilon: float) -> torch.Tensor:
    """AutoAttack as a row of an evaluation, chunks on disk included."""
    with tempfile.TemporaryDirectory() as name:
        suite = Suite({"autoattack": AutoAttack(epsilon=epsilon)})
        suite.chunks = Chunks(Path(name), {}, {"clean": None, "autoattack": {}})
        suite.start(len(images), images.device)
        suite.measure(net, images, labels, number=0, first=0)
        return suite.outcomes["autoattack"].bool()


def main(checkpoint: str, count: int) -> None:
    saved, settings = read_settings(checkpoint)
    config = OmegaConf.create({**settings, "checkpoint": checkpoint})
    assert isinstance(config, DictConfig)
    data = build_data(config)
    data.setup("test")
    data.limit_test(count, "balanced")
    net = build_classifier(config).eval()
    load_network(net, saved, checkpoint)
    images, labels = data.test_set.images, data.test_set.labels
    net.requires_grad_(False)
    seconds: dict[str, list[float]] = {"by_hand": [], "through_nsr": []}
    for _ in range(REPEATS):
        outcomes = []
        for name, measure in (("by_hand", by_hand), ("through_nsr", through_nsr)):
            started = time.perf_counter()
            outcomes.append(measure(net, images, labels, fraction("epsilon", config.epsilon)))
            seconds[name].append(round(time.perf_counter() - started, 2))
        assert torch.equal(*outcomes), "nsr's AutoAttack is not the script's"
    row = {
        "suite_500_digits_s": [round(suite_seconds(checkpoint), 1) for _ in range(REPEATS)],
        "autoattack_images": len(images),
        "autoattack_s": seconds,
        "ratio": round(median(seconds["through_nsr"]) / median(seconds["by_hand"]), 3),
        "right": int(outcomes[0].sum()),
        "threads": torch.get_num_threads(),
        "machine": platform.platform(),
        "torch": torch.__version__,
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip(),
    }
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 250)
