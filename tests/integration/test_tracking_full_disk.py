"""A training whose output folder takes no more goes on, and tells what it lost. Real MLflow on SQLite."""

import logging
import threading
from pathlib import Path

import pytest

from pipeline.tracking.background import BackgroundTracker
from pipeline.tracking.client import open_client, sqlite_uri
from pipeline.tracking.config import TrackingConfig
from pipeline.tracking.tracker import Tracker

pytestmark = [
    pytest.mark.long,  # `make test-cluster`
    pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here"),
]


@pytest.fixture
def config(tmp_path: Path) -> TrackingConfig:
    uri = sqlite_uri(tmp_path / "mlflow" / "mlflow.db")
    return TrackingConfig(uri=uri, experiment="tests", system_metrics=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def full(folder: Path, name: str) -> Path:
    """A file that takes nothing: every write to it fails as on a full disk."""
    (folder / name).symlink_to("/dev/full")
    return folder / name


def steps(config: TrackingConfig, run_id: str) -> list[int]:
    return [point.step for point in open_client(str(config.uri)).get_metric_history(run_id, "loss")]


def started(config: TrackingConfig, folder: Path) -> tuple[BackgroundTracker, str]:
    run_id = Tracker(config, folder=folder).start(job="train", owner="one")
    assert run_id is not None
    rank = BackgroundTracker(config, folder=folder)
    rank.start(job="train", run_id=run_id, owner="one")
    return rank, run_id


def test_a_full_journal_costs_its_points_alone(
    config: TrackingConfig, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rank, run_id = started(config, folder)
    rank.log_metrics({"loss": 1.0}, 1)
    rank._waiting.gather()
    journal = full(folder, "metrics-journal-one.jsonl")
    for step in (2, 3):
        rank.log_metrics({"loss": 1.0}, step)
    assert caplog.text.count("No space left on device") == 1
    journal.unlink()
    rank.log_metrics({"loss": 1.0}, 4)
    rank.finish()
    assert steps(config, run_id) == [1, 4]
    assert f"2 metric values are lost: {folder} took no more" in caplog.text


def test_a_spool_that_takes_nothing_ends_no_training(
    config: TrackingConfig, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.tracking.background._SECONDS_BETWEEN_SENDS", 0.01)
    rank = BackgroundTracker(config, folder=folder)
    rank.start(job="train", owner="one")  # MLflow was away
    full(folder, "metrics-spool-one.jsonl")
    rank.log_metrics({"loss": 1.0}, 1)
    while "have to stay where they are" not in caplog.text:  # the thread has tried
        rank.log_metrics({"loss": 1.0}, 2)
        threading.Event().wait(0.01)
    assert rank._thread is not None
    assert rank._thread.is_alive()
    rank.log_metrics({"loss": 1.0}, 3)
    rank.finish()
    assert [record.levelno for record in caplog.records if "have to stay" in record.message] == [
        logging.WARNING
    ]
    assert "kept in" in caplog.text
    assert "lost" not in caplog.text
    # Nothing was lost: the run that is made later gets all.
    driver = Tracker(config, folder=folder)
    driver.start(job="train", owner="one")
    driver.finish()
    assert steps(config, str(driver.run_id)) == [1, 2, 3]


def test_a_driver_that_can_neither_send_nor_keep_tells_what_is_lost(
    config: TrackingConfig, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Path(str(config.uri).removeprefix("sqlite:///")).parent.write_text("not a folder")
    full(folder, "metrics-spool-one.jsonl")
    driver = Tracker(config, folder=folder)
    driver.start(job="train", owner="one")
    for step in (1, 2):
        driver.log_metrics({"loss": 1.0, "lr": 0.1}, step)
        driver.flush()
    driver.finish()
    assert caplog.text.count("No space left on device") == 1
    assert f"4 metric values are lost: {folder} took no more" in caplog.text
