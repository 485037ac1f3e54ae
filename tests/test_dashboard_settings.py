"""What the settings of a dashboard are by themselves, and what is refused before a run is made."""

from __future__ import annotations

import pytest

from nsr.app.composition import compose_checked, plain, without_hydra
from nsr.errors import InputError


def logger_settings(*overrides: str) -> dict:
    return plain(without_hydra(compose_checked("train", list(overrides))))["logger"]


def test_a_single_run_has_tags_and_no_group():
    settings = logger_settings()
    assert settings["group"] is None
    assert settings["job_type"] == "train"
    assert settings["tags"] == ["digits", "pgd", "sns"]
    assert settings["name"] == "digits_pgd_sns"
    assert settings["mode"] is None


def test_tags_follow_the_choices():
    assert logger_settings("experiment=digits_natural")["tags"] == ["digits", "natural", "none", "digits_natural"]
    assert logger_settings("objective=trades", "stabilizer=none")["tags"] == ["digits", "trades", "none"]
    assert logger_settings("logger.tags=[paper,revision]", "logger.group=table2")["tags"] == ["paper", "revision"]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("logger.project=a/b", "logger.project is 'a/b'; it must be a text of 1 to 128 characters, without any of"),
        ("logger.project=null", "logger.project is None"),
        (f"logger.group={'g' * 129}", "it must be a text of 1 to 128 characters"),
        ("logger.job_type=[train]", "logger.job_type is ['train']"),
        (f"logger.tags=[{'t' * 65}]", "it must be a text of 1 to 64 characters"),
        ("logger.tags=[one,one]", "it must be a list of different texts"),
        ("logger.tags=paper", "logger.tags is 'paper'; it must be a list"),
        ("logger.name=true", "logger.name is True"),
        ("logger.mode=online_", "logger.mode is 'online_'; it must be one of online, offline"),
    ],
)
def test_what_wandb_would_refuse_is_refused_before_the_run(override, told):
    with pytest.raises(InputError) as error:
        compose_checked("train", [override])
    assert told in str(error.value)


def test_numbers_are_names_too():
    assert logger_settings("logger.name=1", "logger.tags=[2]")["tags"] == [2]
