"""The two commands: `train()` and `evaluate()` are train.py and evaluate.py, nsr-train and nsr-evaluate."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from nsr.app.command_line import check_command_line, end_of_sweep, one_line_errors, one_line_interruption
from nsr.app.folders import CONFIGURATIONS
from nsr.run.processes import tolerate_closed_streams


def train() -> None:
    """Train a classifier; `--help` prints the choices."""
    tolerate_closed_streams()
    with one_line_interruption():
        check_command_line("train")
        _train()
        end_of_sweep()


def evaluate() -> None:
    """Evaluate a checkpoint or third-party weights; `--help` prints the choices."""
    tolerate_closed_streams()
    with one_line_interruption():
        check_command_line("evaluate")
        _evaluate()


@hydra.main(version_base="1.3", config_path=str(CONFIGURATIONS), config_name="train")
def _train(config: DictConfig) -> float | tuple[float, ...]:
    """Run one job; return the validated accuracy, or several, for sweepers."""
    with one_line_errors():
        from nsr.app.train import train as run  # torch is loaded only now

        return run(config)
    raise AssertionError("one_line_errors never swallows an error")


@hydra.main(version_base="1.3", config_path=str(CONFIGURATIONS), config_name="evaluate")
def _evaluate(config: DictConfig) -> None:
    """Run one evaluation."""
    with one_line_errors():
        from nsr.app.evaluate import evaluate as run  # torch is loaded only now

        run(config)


if __name__ == "__main__":  # python -m nsr.app.main train ...: how a further process of a run is started
    {"train": train, "evaluate": evaluate}[sys.argv.pop(1)]()
