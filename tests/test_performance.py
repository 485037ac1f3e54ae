"""performance=auto: chosen before a run, stored with it, taken again when it resumes."""

from __future__ import annotations

import pytest
import torch

from nsr.app.performance import resumed_choice
from nsr.run.directory import changes
from tests.conftest import made, without

TINY = without()


def test_performance_is_chosen_stored_and_taken_again():
    run = made("train", *TINY, "performance=auto")
    assert len(run.module.folded_pairs) == 3
    assert run.record["channels_last"] is torch.backends.mkldnn.is_available()
    assert sum("folds 3 of 3 BatchNorm layers" in line for _, line in run.notes) == 1
    settings = {"performance": "auto", "channels_last": "auto"}
    assert resumed_choice(settings, None) == settings
    assert resumed_choice(settings, {"performance": "auto", "channels_last": True})["channels_last"] is True
    before = resumed_choice(settings, {"channels_last": False})  # a run of before there was a choice
    assert before == {"performance": "off", "channels_last": False}
    assert changes({"channels_last": False}, before) == {}
    assert list(changes({"performance": "off"}, {"performance": "auto"})) == ["performance"]


@pytest.mark.slow
def test_the_users_own_layout_and_what_is_not_folded():
    off = made("train", *TINY, "performance=off", "channels_last=true")
    assert (off.module.folded_pairs, off.module.performance_note) == ([], None)
    assert off.record["channels_last"] is True  # the user's own wins
    compiled = made("train", *TINY, "performance=auto", "compile=true")
    assert compiled.module.folded_pairs == []
