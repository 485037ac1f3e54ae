"""Evaluate a checkpoint or third-party weights: `python evaluate.py checkpoint=PATH`, --help for the choices."""

from nsr.app.main import evaluate

if __name__ == "__main__":
    evaluate()
