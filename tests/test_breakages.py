"""Each deliberate mistake still fits the code; `make breakages` makes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.breakages.mistakes import MISTAKES

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_fits_exactly_once(mistake):
    assert (ROOT / mistake.file).read_text().count(mistake.right) == 1
    assert mistake.right != mistake.wrong
    assert all((ROOT / name).exists() for name in mistake.tests.split())
