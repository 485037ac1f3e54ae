"""Evaluate a checkpoint, or somebody else's weights: `python evaluate.py checkpoint=PATH`, --help for the choices."""

import hydra
from omegaconf import DictConfig

from nsr.app.command_line import check_command_line, one_line_errors


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(config: DictConfig) -> None:
    """Runs one evaluation."""
    with one_line_errors():
        from nsr.app.train import evaluate  # torch is loaded only now

        evaluate(config)


if __name__ == "__main__":
    check_command_line("evaluate")
    main()
