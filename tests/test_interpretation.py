"""docs/interpretation.md: made from the committed rows, which support every sentence of its text."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from benchmarks import interpretation, interventions

EARLY = ["relu1", "layer1.0", "layer1.1", "layer1.2", "layer2.0"]
SIZE, SENSITIVITY, SQUARED, ACTIVE = interpretation.CONTROLS
RENAMED = {"limit": "evaluation.n_examples", "attacks": "test_attacks", "alarms": "checks.enabled"}


@pytest.fixture(scope="module")
def rows():
    return interventions.rows()


def signs(rows, control: str, kind: str = "patch_clean") -> dict[str, int]:
    return interpretation.corrected(rows, kind)[control]


def test_the_page_is_made_from_the_committed_rows(rows):
    text = interpretation.PAGE.read_text()
    assert text == interpretation.page(rows, interventions.record(), interpretation.own_networks())
    for path in interpretation.PLOTS.values():
        assert path.name in text
        assert path.stat().st_size < 300_000


def test_the_rows_are_those_of_the_command(rows):
    record = interventions.record()
    words = record["command"].removeprefix("python evaluate.py ").split(" ")
    names = [(RENAMED.get(name, name), value) for name, _, value in (word.partition("=") for word in words)]
    assert [f"{name}={value}" for name, value in names] == interventions.words("resnet20")
    assert "+" not in record["commit"]
    assert len(record["layers"]) == 10
    assert len(rows) == 10 * 2 * (4 * 9 + 1)
    assert {row["images"] for row in rows} == {record["images"]["fooled"]}
    assert {row["n_sets"] for row in rows if row["control"].startswith("random")} == {20}
    assert {row["effect"] for row in rows if row["control"] == "whole_layer"} == {1}


def test_the_text_on_size_sensitivity_and_squared_difference(rows):
    """'Not shown in stage 3'; 'in all but layer3.1'; 'remains in four of ten layers; in none'; '56 to 79 %'."""
    assert signs(rows, SIZE) == {layer: int(not layer.startswith("layer3")) for layer in signs(rows, SIZE)}
    least = interpretation.select(rows, "patch_clean", "least_sensitive")
    assert [layer for layer, row in least.items() if row["contrast_low"] <= 0] == ["layer3.1"]
    for kind, shown in (("patch_clean", EARLY[:4]), ("patch_adversarial", [])):
        assert [layer for layer, sign in signs(rows, SENSITIVITY, kind).items() if sign == 1] == shown
        assert 1 not in signs(rows, SQUARED, kind).values()
    assert [signs(rows, SQUARED)[layer] for layer in EARLY] == [0, -1, -1, -1, -1]
    size, sums = (interpretation.select(rows, "patch_clean", control) for control in (SIZE, SENSITIVITY))
    reached = {layer: 1 - sums[layer]["contrast"] / size[layer]["contrast"] for layer in size}
    assert round(100 * min(reached[layer] for layer in EARLY)) == 56
    assert round(100 * max(reached[layer] for layer in EARLY)) == 79
    assert all(round(100 * part) >= 98 for layer, part in reached.items() if layer not in EARLY)


def test_the_text_on_activation_and_on_the_sets(rows):
    active = interpretation.select(rows, "patch_clean", ACTIVE)
    assert active["relu1"]["overlap"] == 1
    assert [layer for layer, sign in signs(rows, ACTIVE).items() if sign == 1] == EARLY[1:]
    assert signs(rows, ACTIVE)["relu1"] is None and 1 not in signs(rows, ACTIVE, "patch_adversarial").values()
    most, sums, squares = (
        interpretation.select(rows, "patch_clean", control) for control in ("most_sensitive", SENSITIVITY, SQUARED)
    )
    for layer in most:
        assert most[layer]["squared_difference_fraction"] > most[layer]["sensitivity_fraction"]
        assert squares[layer]["sensitivity_fraction"] > most[layer]["sensitivity_fraction"]
        assert sums[layer]["squared_difference_fraction"] < most[layer]["squared_difference_fraction"]
        assert squares[layer]["neurons"] > most[layer]["neurons"]
    overlaps = {layer: row["overlap"] for layer, row in sums.items()}
    assert max(overlaps, key=overlaps.get) == "relu1"
    assert min(overlaps, key=overlaps.get).startswith("layer3")


def test_definitions_hold_in_the_rows(rows):
    """No shortcut bypasses these layers: clean top half is adversarial rest; sums of the random sets are matched."""
    for one, other in (("most_sensitive", "least_sensitive"), ("least_sensitive", "most_sensitive")):
        rest = interpretation.select(rows, "patch_adversarial", other)
        for layer, row in interpretation.select(rows, "patch_clean", one).items():
            assert row["effect"] == pytest.approx(1 - rest[layer]["effect"], abs=2e-6), layer
    for row in rows:
        most = interpretation.select(rows, row["kind"], "most_sensitive", row["fraction"]).get(row["layer"])
        for control, metric in ((SENSITIVITY, "sensitivity_fraction"), (SQUARED, "squared_difference_fraction")):
            if row["control"] == control and row["fraction"] >= 0.25:
                assert row[metric] == pytest.approx(most[metric], abs=0.025), row


def test_the_examples_run(capsys):
    names: dict = {}
    for example in re.findall(r"```python\n(.*?)```", interpretation.PAGE.read_text(), flags=re.DOTALL):
        exec(compile(example, "interpretation.md", "exec"), names)
    assert len(names["frame"]) == len(names["effects"].rows)
    assert "most_sensitive" in capsys.readouterr().out
    images, labels = names["images"], names["labels"]
    context = SimpleNamespace(net=names["net"], labels=labels, batches=lambda index: [(images[index], labels[index])])
    (line,) = names["MeanConfidence"]().run(context)
    assert re.fullmatch(r"mean confidence  0\.\d{3}", line)


def test_formats():
    every = {"a": 1, "b": -1, "c": 0, "d": 1, "e": None}
    assert [interpretation.layers_with(every, wanted) for wanted in (1, -1, 0, None)] == ["a, d", "b", "c", "e"]
    assert interpretation.layers_with({}, 1) == "none"
    above = {"contrast_low": 1, "contrast_high": 2}
    assert interpretation.contrast({"contrast": 0.1, **above}) == "+10.0 [+100.0, +200.0]"


@pytest.mark.parametrize("name", interpretation.own_networks())
def test_networks_of_the_package_have_a_row_of_the_table_a_layer(name):
    found, record = interventions.rows(name), interventions.record(name)
    assert "+" not in record["commit"] and record["command"].split()[2] == f"checkpoint=zoo:{name}"
    text, title = interpretation.PAGE.read_text(), interventions.NETWORKS[name]["title"]
    for row in found:
        if (row["kind"], row["control"], row["fraction"]) == ("patch_clean", "random_equal_size", 0.5):
            start = f"| {title} | {record['images']['fooled']} | {row['layer']} | "
            (line,) = [line for line in text.splitlines() if line.startswith(start)]
            assert f"| {100 * row['contrast']:+.1f} [" in line


@pytest.mark.parametrize("network", ["fashion_mnist_pgd", "fashion_mnist_pgd_sns"])
def test_the_text_on_other_rankings(network):
    """'On the two robust networks ... correct more images in the first two layers, and in no layer fewer'."""
    found = interpretation.corrected(interventions.rows(network), "patch_clean", list(interpretation.RANKINGS)[1:])
    for control in ("by_attribution", "by_activation"):  # a sign is that of the most sensitive half minus the other
        assert [layer for layer, sign in found[control].items() if sign == -1] == ["relu1", "relu2"]
        assert 1 not in found[control].values()


@pytest.mark.parametrize("network", ["resnet20", "fashion_mnist_natural"])
def test_the_text_on_other_rankings_of_natural_networks(network):
    """'On the two naturally trained networks no difference between attribution and sensitivity is shown'."""
    found = interpretation.corrected(interventions.rows(network), "patch_clean", list(interpretation.RANKINGS)[1:])
    assert not {1, -1} & set(found["by_attribution"].values())
