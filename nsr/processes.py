"""Which process of a run this is."""

from __future__ import annotations

import os


def global_rank() -> int:
    """This process's number among all of the run: as torchrun, Lightning or SLURM tell it; 0 where it is alone."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if name in os.environ:
            return int(os.environ[name])
    return 0
