"""Tracking against a real MLflow on SQLite. The model registry: test_registered_model.py."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.tracking.background import BackgroundTracker
from pipeline.tracking.client import open_client, sqlite_uri
from pipeline.tracking.history import logged_curve
from pipeline.tracking.spool import MetricPoint, MetricSpool
from pipeline.tracking.tracker import Tracker, TrackingConfig

pytestmark = pytest.mark.long  # `make test-cluster`

QUIET = TrackingConfig(experiment="tests", system_metrics=False)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MLflow's global default is a file in the working folder: nothing of ours may end up there."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield
    assert list(folder.iterdir()) == [], "MLflow wrote into the working folder"


def history(tracker: Tracker, key: str) -> list[tuple[int, float]]:
    points = open_client(tracker.uri).get_metric_history(str(tracker.run_id), key)
    return [(point.step, point.value) for point in points]


def artifact(tracker: Tracker, name: str, into: Path) -> str:
    into.mkdir(exist_ok=True)
    path = open_client(tracker.uri).download_artifacts(str(tracker.run_id), name, str(into))
    return Path(path).read_text(encoding="utf-8")


def test_a_run_tells_what_ran_on_what(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    tracker = Tracker(QUIET.model_copy(update={"run_name": "first"}), folder=folder)
    run_id = tracker.start(
        job="train",
        recipe={"train": {"lr": 0.001, "betas": [0.9, 0.99], "ema": True, "seed": None}, "hf_token": "abc"},
        tags={"cache_key": "k" * 64, "manifest": "s3://me:hunter22@host/m.json"},
        sources={"precompute": "0123", "none": None},
        parent_run_id="4567",
    )
    tracker.log_params({"ranks": 2})
    tracker.log_dataset_input("train", digest="d" * 64, source="s3://cache/m.json")
    for step in range(3):
        tracker.log_metrics({"loss": 1 / (step + 1), "lr": 0.001}, step)
    tracker.log_pictures("val/masks", Image.new("RGB", (8, 8)), step=2)
    tracker.log_pictures("example: a", Image.new("RGB", (8, 8)))
    (folder / "logs" / "deep").mkdir(parents=True)
    (folder / "logs" / "deep" / "recipe.yaml").write_text("password: hunter22\nlr: 1\n")
    tracker.log_artifacts(folder / "logs", folder="logs")
    tracker.log_text("from http://me:hunter22@host", "notes/note.txt")
    tracker.finish()

    client = open_client(tracker.uri)
    run = client.get_run(str(run_id))
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "first"
    assert run.data.params == {
        "train.lr": "0.001", "train.betas": "[0.9, 0.99]", "train.ema": "true", "train.seed": "null",
        "hf_token": "***", "ranks": "2",
    }  # fmt: skip
    assert run.data.tags["job"] == "train"
    assert run.data.tags["source_run.precompute"] == "0123"
    assert "source_run.none" not in run.data.tags
    assert run.data.tags["mlflow.parentRunId"] == "4567"
    assert run.data.tags["manifest"] == "s3://***@host/m.json"
    (used,) = run.inputs.dataset_inputs
    assert json.loads(used.dataset.source) == {"url": "s3://cache/m.json", "digest": "d" * 64}
    assert history(tracker, "loss") == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    recipe = artifact(tracker, "recipe.yaml", tmp_path / "a")
    assert "lr: 0.001" in recipe
    assert "hf_token: '***'" in recipe
    assert artifact(tracker, "logs/deep/recipe.yaml", tmp_path / "b") == "password: ***\nlr: 1\n"
    assert artifact(tracker, "notes/note.txt", tmp_path / "c") == "from http://***@host"
    assert [entry.path for entry in client.list_artifacts(str(run_id), "pictures")] == [
        "pictures/example- a.png"
    ]
    assert len(client.list_artifacts(str(run_id), "images")) == 2
    assert (folder / "mlflow-artifacts").is_dir()
    assert tracker.open_command == f"mlflow ui --backend-store-uri sqlite:///{folder}/mlflow.db"
    (folder / "logs" / "deep" / "recipe.yaml").unlink()
    assert not [path for path in folder.rglob("*") if path.is_file() and b"hunter22" in path.read_bytes()]


def test_names_that_mlflow_refuses_cost_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = Tracker(QUIET, folder=tmp_path)
    tracker.start(
        job="evaluate",
        recipe={"data": {"splits": {"refcoco+": "val", "a//b@": "test"}}},
        sources={"train.ldznet+pc (2)": "0123"},
    )
    tracker.finish()
    assert "MLflow is away" not in caplog.text
    run = open_client(tracker.uri).get_run(str(tracker.run_id))
    assert sorted(run.data.params.values()) == ["test", "val"]
    assert all(name.startswith("data.splits.") for name in run.data.params)
    assert run.data.tags["source_run.train.ldznet-x2b-pc -x28-2-x29-"] == "0123"


def test_the_same_run_after_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = Tracker(QUIET, folder=tmp_path)
    run_id = first.start(job="train", recipe={"lr": 1, "engine": "ddp"})
    for step in range(5):
        first.log_metrics({"loss": float(step)}, step)
    first.flush()  # and then the process dies

    again = Tracker(QUIET, folder=tmp_path)
    assert (
        again.start(job="train", run_id=run_id, recipe={"lr": 1, "engine": "deepspeed", "new": 3}) == run_id
    )
    assert open_client(again.uri).get_run(str(run_id)).info.status == "RUNNING"
    for step in range(3, 7):  # from the checkpoint before: 3 and 4 are replayed
        again.log_metrics({"loss": 100.0 + step, "val": 1.0}, step)
    again.finish()
    assert [step for step, _ in history(again, "loss")] == [0, 1, 2, 3, 4, 5, 6]
    assert history(again, "loss")[3:5] == [(3, 3.0), (4, 4.0)]
    assert [step for step, _ in history(again, "val")] == [3, 4, 5, 6]
    params = open_client(again.uri).get_run(str(run_id)).data.params
    assert params == {"lr": "1", "engine": "ddp", "new": "3"}
    assert "first values of engine" in caplog.text
    curve = logged_curve(again.uri, str(run_id), "loss", name="ZNet")
    assert (curve.name, list(curve.steps)) == ("ZNet", [0, 1, 2, 3, 4, 5, 6])


def test_more_points_than_one_request_takes(tmp_path: Path) -> None:
    tracker = Tracker(QUIET, folder=tmp_path)
    tracker.start(job="train", recipe={f"key{number}": number for number in range(230)})
    for step in range(60):
        tracker.log_metrics({f"metric{number}": float(step) for number in range(40)}, step)
    tracker.finish()
    assert len(history(tracker, "metric39")) == 60
    assert len(open_client(tracker.uri).get_run(str(tracker.run_id)).data.params) == 230


def blocked(tmp_path: Path) -> tuple[Tracker, Path]:
    """A tracker whose database folder cannot be made, because a file is in its place."""
    obstacle = tmp_path / "store"
    obstacle.write_text("not a folder")
    config = QUIET.model_copy(update={"uri": sqlite_uri(obstacle / "mlflow.db")})
    return Tracker(config, folder=tmp_path / "run"), obstacle


def test_training_goes_on_while_mlflow_is_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker, obstacle = blocked(tmp_path)
    with caplog.at_level(logging.INFO):
        assert tracker.start(job="train", recipe={"lr": 1}) is None
        for step in range(3):
            tracker.log_metrics({"loss": float(step)}, step)
            tracker.flush()
        tracker.log_pictures("lost", Image.new("RGB", (8, 8)))
    assert caplog.text.count("MLflow is away") == 1
    assert "the run goes on without it" in caplog.text
    assert [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics-spool.jsonl").open()] == [
        0,
        1,
        2,
    ]

    obstacle.unlink()
    tracker.log_metrics({"loss": 3.0}, 3)
    with caplog.at_level(logging.INFO):
        tracker.finish()
    assert "MLflow is back" in caplog.text
    assert [step for step, _ in history(tracker, "loss")] == [0, 1, 2, 3]
    assert open_client(tracker.uri).get_run(str(tracker.run_id)).data.params == {"lr": "1"}
    assert not (tmp_path / "run" / "metrics-spool.jsonl").exists()


def test_between_attempts_the_spool_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tracking.background._SECONDS_BETWEEN_SENDS", 0.01)
    monkeypatch.setattr("pipeline.tracking.tracker._RETRY_SECONDS", 3600.0)
    read, reads = MetricSpool.read, []

    def counted(spool: MetricSpool) -> list[MetricPoint]:
        reads.append(spool.path.name)
        return read(spool)

    monkeypatch.setattr(MetricSpool, "read", counted)
    away, _ = blocked(tmp_path)
    folder = tmp_path / "run"
    spool, journal = MetricSpool.of(folder, "one"), MetricSpool.journal_of(folder, "one")
    spool.append(MetricPoint(key="loss", value=1.0, step=step, timestamp=1) for step in range(20_000))
    rank = BackgroundTracker(QUIET.model_copy(update={"uri": away.uri}), folder=folder)
    rank.start(job="train", run_id="0123", owner="one")
    for step in range(20_000, 20_005):
        rank.log_metrics({"loss": 1.0}, step)
        while journal.path.exists():  # until the thread has taken it up
            time.sleep(0.005)
    assert spool.path.name not in reads
    rank.finish()
    assert [point.step for point in read(spool)] == list(range(20_005))


def test_mlflow_away_to_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker, obstacle = blocked(tmp_path)
    tracker.start(job="train")
    tracker.log_metrics({"loss": 1.0}, 0)
    tracker.finish()
    assert "1 metric values are kept in" in caplog.text
    # The next run is another one: what the first left is not delivered as its own.
    obstacle.unlink()
    later = Tracker(TrackingConfig(uri=tracker.uri, system_metrics=False), folder=tmp_path / "run")
    later.start(job="train")
    later.finish()
    assert history(later, "loss") == []
    assert len(list((tmp_path / "run").glob("metrics-spool-*.jsonl"))) == 1


def test_runs_that_share_a_folder_keep_their_spools_apart(tmp_path: Path) -> None:
    both = []
    for name in ("one", "other"):
        tracker = Tracker(QUIET.model_copy(update={"run_name": name}), folder=tmp_path)
        both.append(tracker.start(job="train"))
        tracker.finish()
    database = Path(tracker.uri.removeprefix("sqlite:///"))
    database.rename(away := tmp_path / "away.db")
    database.mkdir()  # in its place, so that nothing can be made there
    for number, run_id in enumerate(both):
        tracker = Tracker(QUIET, folder=tmp_path)
        tracker.start(job="train", run_id=run_id)
        tracker.log_metrics({"loss": float(number)}, 1)
        tracker.finish()
    assert len(list(tmp_path.glob("metrics-spool-*.jsonl"))) == 2
    database.rmdir()
    away.rename(database)
    # A run without an id yet does not touch them, and each goes to its own.
    third = Tracker(QUIET, folder=tmp_path)
    third.start(job="grid")
    third.finish()
    for number, run_id in enumerate(both):
        tracker = Tracker(QUIET, folder=tmp_path)
        tracker.start(job="train", run_id=run_id)
        tracker.finish()
        assert history(tracker, "loss") == [(1, float(number))]
    assert not list(tmp_path.glob("metrics-spool*"))


def test_a_server_that_is_not_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter22@127.0.0.1:9")
    tracker = Tracker(QUIET, folder=tmp_path)
    assert tracker.start(job="train") is None
    assert caplog.text.count("MLflow is away") == 1
    assert "hunter22" not in caplog.text
    assert tracker.open_command == "http://***@127.0.0.1:9"


def test_a_killed_writer_leaves_a_readable_spool(tmp_path: Path) -> None:
    tracker, obstacle = blocked(tmp_path)
    tracker.start(job="train")
    tracker.log_metrics({"loss": 1.0}, 0)
    tracker.flush()
    spool = tmp_path / "run" / "metrics-spool.jsonl"
    with spool.open("a") as file:
        file.write('{"key": "loss", "val')  # cut short
    obstacle.unlink()
    tracker.finish()
    assert history(tracker, "loss") == [(0, 1.0)]


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_how_a_run_ended(tmp_path: Path, error: type[BaseException], status: str) -> None:
    tracker = Tracker(QUIET, folder=tmp_path)

    def train() -> None:
        with tracker:
            tracker.start(job="train")
            tracker.log_metrics({"loss": 1.0}, 0)
            raise error

    with pytest.raises(error):
        train()
    assert open_client(tracker.uri).get_run(str(tracker.run_id)).info.status == status
    assert history(tracker, "loss") == [(0, 1.0)]


def test_system_metrics_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
    tracker = Tracker(TrackingConfig(), folder=tmp_path)
    tracker.start(job="train")
    while not history(tracker, "system/cpu_utilization_percentage"):
        time.sleep(0.2)
    running = {thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"}
    assert running
    tracker.finish()
    assert not [thread for thread in running if thread.is_alive()]


def test_tracking_off_imports_no_mlflow(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from pipeline.tracking.tracker import Tracker, TrackingConfig
tracker = Tracker(TrackingConfig(enabled=False), folder=Path({str(tmp_path / "run")!r}))
assert tracker.start(job="train", recipe={{"a": 1}}) is None
tracker.log_metrics({{"loss": 1.0}}, 0)
tracker.log_text("text", "a.txt")
tracker.finish()
assert not {{"mlflow", "torch", "matplotlib"}} & set(sys.modules), "slow imports"
"""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env=environment)
    assert not (tmp_path / "run").exists()
