"""Printed commands: what a shell and Hydra read from them is what was meant."""

from __future__ import annotations

import subprocess

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from reference import PROPERTY

from nsr.run import commands
from nsr.run.commands import command, override, parse_value

NASTY = (
    *("/tmp/my run/seed=0,lr=0.1/best.ckpt", "it's", 'say "x"', "both ' and \"", "[bold]exp[v2]", "{a: 1}"),
    *("C:\\new\\", "a\\'b\\\\", "${oc.env:HOME}", "\\${x", "über/語", "$(rm -rf x)`y`!*?~#&;|<>%"),
    *(" lead and trail ", "null", "TRUE"),
    *("1e5", "2030", "007", "nan", "", "-x", "~", "a\tb", "a\x1b[31mb\n", "+1_0"),
)
CHARACTERS = st.sampled_from("ab'\"\\=$ {}[](),:;#~%*?!|&<>`\té語/.-+@0e1_") | st.characters(exclude_categories=["Cs"])


def read_by_hydra(word: str):
    """The value of setting a.b after Hydra's parser and OmegaConf."""
    (parsed,) = OverridesParser.create().parse_overrides([word])
    config = OmegaConf.create({"a": {"b": None}})
    OmegaConf.update(config, "a.b", parsed.value())
    return config.a.b


@pytest.mark.parametrize("value", NASTY)
def test_a_pasted_command_gives_the_value_back(value):
    pasted = command("train", override("a.b", value))
    words = subprocess.check_output(["bash", "-c", f"printf '%s\\0' {pasted}"], text=True).split("\0")
    assert read_by_hydra(words[2]) == parse_value(words[2]) == value
    assert pasted.isprintable()


@PROPERTY
@given(st.text(CHARACTERS, max_size=12))
@example("\\'\"")
def test_any_text_passes_hydra(value):
    assert read_by_hydra(override("a.b", value)) == parse_value(override("a.b", value)) == value


@pytest.mark.parametrize("value", [None, True, 3, -0.5, 1e-5, [], ["clean", "a b", 3, None], [["x"]]])
def test_other_values_pass_hydra(value):
    assert read_by_hydra(override("a.b", value)) == value


@pytest.mark.parametrize(("typed", "value"), [("a=x\\,y\\ z", "x,y z"), ("a= 'x' ", "x"), ('a="', '"'), ("a", "")])
def test_values_as_users_type_them(typed, value):
    assert parse_value(typed) == value


def test_programs_in_a_checkout_and_installed(monkeypatch, tmp_path):
    root = commands.CHECKOUT
    monkeypatch.chdir(root)
    starts = {name: command(name, "x") for name in ("train", "evaluate", "compare")}
    assert list(starts.values()) == ["python train.py x", "python evaluate.py x", "python -m nsr.compare x"]
    monkeypatch.chdir(tmp_path)
    assert command("train") == f"python {root}/train.py"
    assert command("compare") == f"PYTHONPATH={root} python -m nsr.compare"
    monkeypatch.setattr(commands, "CHECKOUT", tmp_path)
    (tmp_path / "train.py").touch()  # of another package, beside the installed nsr
    assert [command(name) for name in starts] == ["nsr-train", "nsr-evaluate", "nsr-compare"]
