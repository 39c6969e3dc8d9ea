"""Tracking and the model registry against a real MLflow on SQLite."""

import base64
import io
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

import numpy as np
import pytest
import torch
from PIL import Image

from ldznet.errors import UserError
from ldznet.ldm_folder import ldm_digest
from ldznet.miniature_ldm import MiniatureConfig, build_miniature_ldm
from ldznet.modeling import NetworkConfig, build_network, unet_config_of
from ldznet.prediction_config import PredictionConfig
from ldznet.predictor import Predictor
from pipeline.models.registered import register_model, resolve_model
from pipeline.tracking.client import open_client, sqlite_uri
from pipeline.tracking.history import logged_curve
from pipeline.tracking.tracker import Tracker, TrackingConfig

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


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LD-ZNet with its LDM, saved as training saves it."""
    folder = tmp_path_factory.mktemp("model")
    config = MiniatureConfig(
        block_out_channels=(8, 16, 16, 16), attention_heads=2, norm_groups=4, context_width=16, text_layers=1,
        text_heads=2, vocabulary_size=300, vae_channels=(4, 4, 4, 4),
    )  # fmt: skip
    ldm = build_miniature_ldm(folder / "ldm", config=config, phrases=["the red apple"])
    torch.manual_seed(0)
    network = build_network(NetworkConfig(unet=unet_config_of(ldm), positional_latent_side=8))
    network.save_pretrained(folder / "network")
    PredictionConfig(ldm_source=str(ldm), ldm_digest=ldm_digest(ldm), size=64).save(folder / "network")
    return folder / "network"


PREDICT = """
import sys, json, base64
import mlflow, pandas as pd
# Only what the artifact holds: a machine that serves has no checkout.
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/segmenter@best")
path = sys.argv[2]
data = open(path, "rb").read()
rows = []
for image in (path, data, base64.b64encode(data).decode()):
    table = pd.DataFrame({"image": [image, image], "phrase": ["the red apple", "the sky"]})
    rows.append(model.predict(table).to_dict("records"))
import ldznet
print(json.dumps({"rows": rows, "code": ldznet.__file__, "pipeline": "pipeline" in sys.modules}))
"""


def test_a_registered_model_serves_without_the_checkout(tmp_path: Path, model_folder: Path) -> None:
    tracker = Tracker(QUIET, folder=tmp_path)
    with tracker:
        run_id = tracker.start(job="train")
        assert register_model(tracker, model_folder, name="segmenter", alias="best") == "1"
        assert register_model(tracker, model_folder, name="segmenter", alias="best") == "2"
    artifacts = tmp_path / "mlflow-artifacts"
    assert not [
        path for path in artifacts.rglob("*") if path.suffix in {".pkl", ".pickle", ".pt", ".pth", ".pyc"}
    ]
    run = open_client(tracker.uri).get_run(str(run_id))
    assert len(run.outputs.model_outputs) == 2

    photo = Image.fromarray(np.random.default_rng(0).integers(255, size=(70, 90, 3), dtype=np.uint8))
    photo.save(tmp_path / "photo.png")
    arguments = [sys.executable, "-c", PREDICT, tracker.uri, str(tmp_path / "photo.png")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        arguments, check=True, capture_output=True, text=True, cwd=artifacts, env=environment
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    assert Path(answer["code"]).is_relative_to(artifacts)
    assert not answer["pipeline"]
    predictor = Predictor.from_pretrained(model_folder)
    predictor.set_image(photo)
    expected = predictor.predict(["the red apple", "the sky"])
    for rows in answer["rows"]:
        for row, prediction in zip(rows, expected, strict=True):
            mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(row["mask_png"]))))
            assert np.array_equal(mask == 255, prediction.mask)
            assert row["area"] == pytest.approx(prediction.mask.mean())


def test_a_reference_resolves_to_the_model_folder(
    tmp_path: Path, model_folder: Path, monkeypatch: Any
) -> None:
    tracker = Tracker(QUIET, folder=tmp_path)
    with tracker:
        tracker.start(job="train")
        register_model(tracker, model_folder, name="segmenter", alias="best")
    for reference in ("models:/segmenter@best", "models:/segmenter/1"):
        found = resolve_model(reference, tracker.uri)
        assert {path.name: path.read_bytes() for path in found.iterdir()} == {
            path.name: path.read_bytes() for path in model_folder.iterdir()
        }
    assert resolve_model("models:/segmenter@best", tracker.uri, folder=tmp_path / "here").is_relative_to(
        tmp_path / "here"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    assert resolve_model("models:/segmenter/1") == resolve_model("models:/segmenter/1", tracker.uri)
    assert resolve_model(model_folder) == model_folder
    for wrong, said in (
        ("models:/segmenter@worst", "alias worst not found"),
        ("models:/other@best", "other not found"),
        ("models:/segmenter/7", "version=7"),
        ("models:/segmenter", "write models:/NAME@ALIAS"),
        (str(tmp_path / "nothing"), "there is no model folder"),
    ):
        with pytest.raises(UserError, match=said) as raised:
            resolve_model(wrong)
        assert "\n" not in str(raised.value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UserError, match="--tracking-uri"):
        resolve_model("models:/segmenter@best")


def test_registering_what_is_not_there_or_while_mlflow_is_away(tmp_path: Path, model_folder: Path) -> None:
    tracker, _ = blocked(tmp_path)
    tracker.start(job="train")
    assert register_model(tracker, model_folder, name="segmenter", alias="best") is None
    with pytest.raises(UserError, match="there is no model folder"):
        register_model(tracker, tmp_path / "nothing", name="segmenter", alias="best")
