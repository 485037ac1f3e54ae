"""docs/interpretation.md: made from the committed rows, and no sentence of its own that they do not bear out."""

from __future__ import annotations

import re

import pytest

from benchmarks import interpretation, interventions

EARLY = ["relu1", "layer1.0", "layer1.1", "layer1.2", "layer2.0"]


@pytest.fixture(scope="module")
def rows():
    return interventions.rows()


def contrasts(rows, family: str, kind: str = "restore", share: float = 0.5) -> dict[str, int]:
    found = interpretation.found(rows, kind, family, share)
    return {layer: interpretation.sign_of(row) for layer, row in found.items()}


def test_the_page_is_made_from_the_committed_rows(rows):
    assert interpretation.PAGE.read_text() == interpretation.page(rows, interventions.record())


def test_the_rows_are_those_of_the_command(rows):
    record = interventions.record()
    command = record["command"].replace("alarms=false", "alarms.judge=false")  # as it is called since
    assert command == f"python evaluate.py {' '.join(interventions.COMMAND)}"
    assert "+" not in record["commit"]
    assert len(record["layers"]) == 10
    assert len(rows) == 10 * 2 * (4 * 7 + 1)
    assert {row["images"] for row in rows} == {record["images"]["fooled"]}
    assert {row["draws"] for row in rows if row["family"].startswith("random")} == {20}


def test_the_difference_to_equal_size_is_there_where_it_was_expected(rows):
    """In the stem, stage 1 and layer2.0; the page says in every layer, and to the least sensitive in all but one."""
    assert set(contrasts(rows, "random_equal_size").values()) == {1}
    assert set(EARLY) <= set(contrasts(rows, "random_equal_size"))
    least = contrasts(rows, "least_sensitive")
    assert [layer for layer, sign in least.items() if sign != 1] == ["layer3.1"]


def test_restoring_one_half_is_corrupting_the_other(rows):
    """Nothing goes around these layers: what the definition says shows in the rows."""
    for one, other in (("most_sensitive", "least_sensitive"), ("least_sensitive", "most_sensitive")):
        for layer, row in interpretation.found(rows, "restore", one).items():
            rest = interpretation.found(rows, "corrupt", other)[layer]
            assert row["effect"] == pytest.approx(1 - rest["effect"], abs=2e-6), layer


def test_what_the_text_says_of_mass_and_energy(rows):
    """'At equal mass a difference is left in five of ten layers; at equal energy in none', and how much is gone."""
    for kind in ("restore", "corrupt"):
        mass, energy = (contrasts(rows, f"random_equal_{measure}", kind) for measure in ("mass", "energy"))
        assert [layer for layer, sign in mass.items() if sign == 1] == EARLY
        assert 1 not in energy.values()
    restored = contrasts(rows, "random_equal_energy")
    assert [restored[layer] for layer in EARLY] == [0, -1, -1, -1, -1]
    size, mass = (interpretation.found(rows, "restore", f"random_equal_{measure}") for measure in ("size", "mass"))
    gone = {layer: 1 - mass[layer]["contrast"] / size[layer]["contrast"] for layer in size}
    assert round(100 * min(gone[layer] for layer in EARLY)) == 56
    assert round(100 * max(gone[layer] for layer in EARLY)) == 79
    assert all(share > 0.975 for layer, share in gone.items() if layer not in EARLY)


def test_what_the_text_says_of_activation_and_of_the_sets(rows):
    active = interpretation.found(rows, "restore", "by_activation")
    assert active["relu1"]["overlap"] == 1
    more = [layer for layer, row in active.items() if interpretation.sign_of(row) == 1]
    assert more == [*EARLY[1:], "layer3.1", "layer3.2"]
    most, mass, energy = (
        interpretation.found(rows, "restore", family)
        for family in ("most_sensitive", "random_equal_mass", "random_equal_energy")
    )
    for layer in most:
        assert most[layer]["energy"] > most[layer]["mass"]
        assert energy[layer]["mass"] > most[layer]["mass"]
        assert mass[layer]["energy"] < most[layer]["energy"]
        assert energy[layer]["neurons"] > most[layer]["neurons"]
    overlaps = {layer: row["overlap"] for layer, row in mass.items()}
    assert max(overlaps, key=overlaps.get) == "relu1"
    assert min(overlaps, key=overlaps.get).startswith("layer3")


def test_whole_layers_restore_and_corrupt_everything(rows):
    assert {row["effect"] for row in rows if row["family"] == "whole_layer"} == {1}


def test_masses_and_energies_are_matched(rows):
    for row in rows:
        most = interpretation.found(rows, row["kind"], "most_sensitive", row["share"]).get(row["layer"])
        for family, what in (("random_equal_mass", "mass"), ("random_equal_energy", "energy")):
            if row["family"] == family and row["share"] >= 0.25:
                assert row[what] == pytest.approx(most[what], abs=0.025), row


def test_figures_are_there_and_small():
    text = interpretation.PAGE.read_text()
    for path in interpretation.FIGURES.values():
        assert path.name in text
        assert path.stat().st_size < 200_000


def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", interpretation.PAGE.read_text(), flags=re.DOTALL)
    names: dict = {}
    exec(compile(example, "interpretation.md", "exec"), names)
    assert len(names["frame"]) == len(names["found"].rows)
    assert "most_sensitive" in capsys.readouterr().out


def test_told_by_sign():
    row = {"contrast": 0.1, "contrast_low": 0.05, "contrast_high": 0.2}
    below = {"contrast": -0.1, "contrast_low": -0.2, "contrast_high": -0.05}
    neither = {"contrast": 0.0, "contrast_low": -0.1, "contrast_high": 0.1}
    every = {"a": row, "b": below, "c": neither, "d": row}
    assert [interpretation.told(every, sign) for sign in (1, -1, 0)] == ["a, d", "b", "c"]
    assert interpretation.told({}, 1) == "none"
    assert interpretation.contrast(row) == "+10.0 [+5.0, +20.0]"
