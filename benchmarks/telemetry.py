"""What a training step of a small network costs beside its passes: metrics and records, and everything else of nsr.

    python -m benchmarks.telemetry [ROUNDS]

Beside it a profile: the shares of the operations in the time of a default step of ResNet-20 on 32 x 32 images.

PGD-10 on 8 x 8 images, a network of three convolutions, batches of 64, and its passes alone in a plain loop. They take
turns in each of ROUNDS rounds (default 30); times as in benchmarks.peers. The metrics are timed inside the step: steps
with and without them differ by less than the machine's noise.
A row is appended to benchmarks/results/telemetry.jsonl.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from statistics import median

from torch.profiler import ProfilerActivity, profile

from benchmarks.common import append_row
from benchmarks.peers import DEVICE, seconds
from benchmarks.step_times import Sizes, Variant, floor_step, nsr_step, spread
from nsr.app.machine import keep_freed_memory

SIZES = Sizes(network="SmallCNN", image_size=8, batch=64)
FAST = Variant(channels_last=True)
TOGETHER = 5  # steps that are timed at once


def operations(sizes: Sizes) -> dict[str, float]:
    """Profile a step with SNS; {operation: fraction of the time of all}, largest first, at most 12."""
    _, step = nsr_step(sizes, device=DEVICE, variant=FAST, folds=True)
    step(0)
    kind = ProfilerActivity.CUDA if DEVICE.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[kind]) as found:
        step(1)
    name = "self_device_time_total" if DEVICE.type == "cuda" else "self_cpu_time_total"
    times = sorted(((getattr(each, name), each.key) for each in found.key_averages()), reverse=True)
    total = sum(taken for taken, _ in times)
    return {key: round(taken / total, 3) for taken, key in times[:12]}


class Timer:
    """Adds up the seconds of a function's calls."""

    def __init__(self) -> None:
        self.total = 0.0

    def __call__(self, function: Callable[..., None]) -> Callable[..., None]:
        def timed(*arguments: object, **further: object) -> None:
            started = seconds()
            function(*arguments, **further)
            self.total += seconds() - started

        return timed


def main(rounds: int) -> None:
    keep_freed_memory()  # as performance=auto
    metrics = Timer()
    steps = {
        "nsr": nsr_step(SIZES, device=DEVICE, variant=FAST, stabilizes=False, folds=True, around_metrics=metrics),
        "nsr, nothing folded": nsr_step(SIZES, device=DEVICE, variant=FAST, stabilizes=False),
        "passes alone": floor_step(SIZES, device=DEVICE, variant=FAST, views=1),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        if number == 1:  # the first round warms up
            metrics.total = 0.0
        for name, (_, step) in steps.items():
            started = seconds()
            for more in range(TOGETHER):
                step(number + more)
            if number > 0:
                times[name].append(1000 * (seconds() - started) / TOGETHER)
    middle = {name: median(values) for name, values in times.items()}
    row = {
        "metrics_share": round(1000 * metrics.total / (TOGETHER * sum(times["nsr"])), 4),
        "to_passes_alone": round(middle["nsr"] / middle["passes alone"], 3),
        "nothing_folded_to_passes_alone": round(middle["nsr, nothing folded"] / middle["passes alone"], 3),
        "step_ms": {name: spread(values) for name, values in times.items()},
        "profile": operations(Sizes(network="ResNet20", batch=32)),
        "load": os.getloadavg()[0],
    }
    append_row("telemetry", row)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
