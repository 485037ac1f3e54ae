"""Train a classifier: `python train.py`, `python train.py --help` for the choices."""

from nsr.app.main import train

if __name__ == "__main__":
    train()
