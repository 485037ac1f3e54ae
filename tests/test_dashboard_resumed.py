"""A run that is resumed or ends with an error, on the dashboards; what bounds the loss of a killed one."""

from __future__ import annotations

from contextlib import suppress

import pytest

from tests.offline_runs import offline_history, offline_records, offline_run


def test_the_flush_interval_that_bounds_the_loss_exists():
    import wandb

    assert wandb.Settings.model_fields["x_transaction_log_flush_interval"].annotation is float
    assert {"finish_timeout", "finish_timeout_raises", "init_timeout"} <= set(wandb.Settings.model_fields)


@pytest.mark.slow
def test_a_resumed_run_goes_on_under_its_id(tmp_path):
    from nsr.loggers import finish
    from nsr.loggers.wandb import wandb_logger

    ids = []
    for step in (1, 2):
        logger = wandb_logger(save_dir=str(tmp_path), mode="offline")
        logger.log_metrics({"figure": step}, step=step)
        ids.append(logger.experiment.id)
        finish(logger)
    assert ids[0] == ids[1]
    segments = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(segments) == 2
    assert sorted(offline_history(segment)[0]["figure"] for segment in segments) == [1, 2]
    other = wandb_logger(save_dir=str(tmp_path / "other"), mode="offline")
    assert other.experiment.id != ids[0]
    finish(other)


@pytest.mark.slow
def test_a_run_that_ends_with_an_error_is_shown_as_failed(tmp_path):
    from nsr.loggers import finish
    from nsr.loggers.wandb import wandb_logger

    logger = wandb_logger(save_dir=str(tmp_path), mode="offline")
    with suppress(RuntimeError):
        try:
            raise RuntimeError("the training has failed")
        finally:
            finish(logger)
    (code,) = [
        record["exit"]["exit_code"] for record in offline_records(offline_run(tmp_path)) if record["type"] == "exit"
    ]
    assert code == 1


def test_a_resumed_run_keeps_the_rows_of_the_csv_logger(tmp_path):
    from nsr.loggers.csv import csv_logger

    for folder in ("csv", "csv_2", "csv_3"):
        logger = csv_logger(save_dir=str(tmp_path))
        logger.log_hyperparams({"seed": 0})
        logger.log_metrics({"figure": 1.0}, step=0)
        logger.save()
        assert (tmp_path / folder / "metrics.csv").exists()
    assert len(list(tmp_path.glob("*/metrics.csv"))) == 3


def test_tensorboard_shows_the_segments_of_a_resumed_run_as_one(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from nsr.loggers import finish
    from nsr.loggers.tensorboard import tensorboard_logger

    for step in (1, 2):
        logger = tensorboard_logger(save_dir=str(tmp_path))
        logger.log_metrics({"figure": step}, step=step)
        finish(logger)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("figure")] == [1, 2]
