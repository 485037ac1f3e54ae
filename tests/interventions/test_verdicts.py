"""Verdicts on interventions: uninformative controls, too few images, Holm's correction, against rows made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import binomtest

from nsr.interventions.effects import Effects, Row, contrast_interval
from nsr.interventions.report import contrast, tables
from nsr.interventions.verdicts import p_value, verdicts

SIZE, SUM, ACTIVE = "random_equal_size", "random_equal_sensitivity", "by_activation"


def made(control: str, gap: float, half: float, *, overlap: float = 0.5, images: int = 60, layer: str = "a") -> Row:
    """A row whose contrast is gap +- half."""
    interval = (gap, gap - half, gap + half)
    effect = (0.5, 0.4, 0.6)
    return Row(layer, "patch_clean", 0.5, control, 20, 8.0, 16, 0.7, 0.8, overlap, images, *2 * (*effect, *interval))


def layers_of(*rows: Row) -> dict[str, dict[str, Row]]:
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        layer = found.setdefault(row.layer, {"most_sensitive": made("most_sensitive", 0, 0, images=row.images)})
        layer[row.control] = row
    return found


def test_one_plain_sentence_a_layer():
    found = verdicts(
        layers_of(
            *(made(SIZE, 0.3, 0.1), made(SUM, 0.02, 0.1), made(ACTIVE, 0.0, 0.0, overlap=0.95)),
            *(made(SIZE, -0.3, 0.1, layer="b"), made(SUM, 0.3, 0.0, layer="b")),
        )
    )
    assert found == {
        "a": "a: the most sensitive neurons have a larger effect than as many random neurons; do not differ "
        "measurably from random neurons of equal summed sensitivity; overlap by more than 90 % (uninformative) with "
        "the neurons of largest clean activation.",
        "b": "b: the most sensitive neurons have a larger effect than random neurons of equal summed sensitivity; "
        "have a smaller effect than as many random neurons.",
    }


def test_what_one_test_shows_twenty_do_not():
    """An interval that excludes 0 narrowly: p 0.03 alone."""
    row = made(SIZE, 0.11, 0.1)
    assert 0.02 < p_value(row) < 0.04
    assert "larger" in verdicts(layers_of(row))["a"]
    others = [made(SIZE, 0.0, 0.1, layer=f"layer{number}") for number in range(19)]
    assert "do not differ measurably" in verdicts(layers_of(row, *others))["a"]


@pytest.mark.parametrize("images", [1, 49])
def test_too_few_images(images):
    row = made(SIZE, 1.0, 0.0, images=images)
    assert "too few (50 are needed)" in verdicts(layers_of(row))["a"]
    assert contrast(row) == f"too few images ({images})"
    assert contrast(made(SIZE, 0.5, 0.1, images=50)) == "+50.0 [+40.0, +60.0]"
    assert contrast(made(SIZE, 0.0, 0.0, overlap=0.96)) == "uninformative (overlap 96 %)"
    assert contrast(made(SIZE, 0.0, 0.0, overlap=0.9)) == "+0.0 [+0.0, +0.0]"


def test_the_verdicts_are_printed_below_the_tables():
    rows = layers_of(made(SIZE, 0.3, 0.1))["a"].values()
    whole = replace(made("whole_layer", 0.0, 0.0, overlap=1.0), fraction=1.0)
    parts = list(tables(Effects([*rows, whole], {}, {}, {})))
    assert [part for part in parts if isinstance(part, str)] == [
        "verdicts    patch_clean, 50 % of each layer's neurons; Holm's correction over all contrasts of the table",
        "  a: the most sensitive neurons have a larger effect than as many random neurons.",
    ]


@pytest.mark.parametrize(("more", "is_larger"), [(4, False), (5, False), (6, True)])
def test_few_images_more_are_no_larger_effect(more, is_larger):
    """Five images of 60 that only one of two single sets changes: the sign test's p is 0.0625, the normal's 0.02."""
    first, second = torch.zeros(1, 60), torch.zeros(1, 60)
    first[0, :more] = 1
    values = contrast_interval(first, second)
    row = replace(
        made(ACTIVE, 0, 0), n_sets=1, contrast=values.mean, contrast_low=values.low, contrast_high=values.high
    )
    assert p_value(row) >= binomtest(more, more).pvalue
    assert ("a larger effect" in verdicts(layers_of(row))["a"]) is is_larger


@pytest.mark.parametrize("effect", [0.02, 0.5])
def test_equal_sets_differ_in_five_percent_of_tables(effect):
    """200 contrasts of two sets with the same effect, 60 images; 0.02: one image, or none, of the single set."""
    generator, shown = torch.Generator().manual_seed(0), 0
    for seed in range(200):
        first, second = ((torch.rand(sets, 60, generator=generator) < effect).double() for sets in (1, 20))
        row = made(SIZE, 0, 0)
        values = contrast_interval(first, second, n_bootstrap=300, seed=seed)
        row = replace(row, contrast=values.mean, contrast_low=values.low, contrast_high=values.high)
        shown += p_value(row) <= 0.05
    assert shown <= 20
