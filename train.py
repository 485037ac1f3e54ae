"""Train a classifier: `python train.py`, `python train.py --help` for the choices."""

import hydra
from omegaconf import DictConfig

from nsr.app.command_line import check_command_line, end_of_sweep, one_line_errors


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float | tuple[float, ...]:
    """Runs one job; its result is the validated accuracy, or several of them, for sweepers."""
    with one_line_errors():
        from nsr.app.train import train  # torch is loaded only now

        return train(config)
    raise AssertionError("one_line_errors never swallows an error")


if __name__ == "__main__":
    check_command_line("train")
    main()
    end_of_sweep()
