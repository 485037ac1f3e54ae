"""Puts the Point of the environment into train.py and the processes that it starts, see tests/endurance/points.py."""

import os
import sys

if "POINT" in os.environ and any(word.endswith("train.py") or word == "nsr.app.main" for word in sys.orig_argv):
    from tests.endurance.points import install

    install()
