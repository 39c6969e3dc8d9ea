"""`ldznet train` with alternatives: real Ray, DeepSpeed and MLflow; what a grid leaves, and how it goes on."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import ray

from jobs import train
from jobs.local_ray import ray_session
from pipeline.models.folder import model_digest
from pipeline.object_store.opening import open_store
from pipeline.tracking.client import open_client, sqlite_uri
from pipeline.tracking.config import TrackingConfig

pytestmark = pytest.mark.long  # `make test-cluster`

GRID = ("fusion=cross_attention,concat", "seed=1,2")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A recipe with its cache, and what trainings leave."""

    recipe: Path

    def train(self, *overrides: str) -> int:
        return train.main([str(self.recipe), *overrides])

    @property
    def output(self) -> Path:
        return self.recipe.parent / "run"

    @property
    def client(self) -> Any:
        return open_client(sqlite_uri(self.output / "mlflow.db"))

    def runs(self, job: str) -> dict[str, Any]:
        """Name -> run."""
        experiment = self.client.get_experiment_by_name("tests")
        found = self.client.search_runs([experiment.experiment_id], filter_string=f"tags.job = '{job}'")
        assert len({run.info.run_name for run in found}) == len(found)
        return {run.info.run_name: run for run in found}

    def versions(self, name: str) -> list[Any]:
        return sorted(self.client.search_model_versions(f"name = '{name}'"), key=lambda one: int(one.version))

    def stored(self, place: Path) -> dict[str, str]:
        """Key -> ETag of everything below a folder."""
        return {info.key: info.etag for info in open_store(place).list()}

    def table(self, name: str) -> list[dict[str, str]]:
        (folder,) = (self.output / "grids").iterdir()
        return list(csv.DictReader((folder / name).open()))


def make(folder: Path, write: Callable[..., Path], compute: Callable[..., None], **train: Any) -> Experiment:
    recipe = write(
        folder,
        tracking={"experiment": "tests", "system_metrics": False},
        train={"steps": 3, "batch_size": 8, "lr": 1e-3, "workers": 1, **train},
    )
    compute(recipe)
    return Experiment(recipe=recipe)


@pytest.fixture(scope="module")
def slots() -> Iterator[None]:
    """A Ray with room for two ranks of one thread."""
    with ray_session(cpus=2):
        yield


@pytest.fixture(scope="module")
def grid(
    slots: None,
    tmp_path_factory: pytest.TempPathFactory,
    small_recipe_in: Callable[..., Path],
    precompute_here: Callable[..., None],
) -> Experiment:
    """Two networks from two seeds each, trained over one cache."""
    made = make(tmp_path_factory.mktemp("grid"), small_recipe_in, precompute_here)
    before = made.stored(made.recipe.parent / "cache")
    assert made.train(*GRID) == 0
    assert made.stored(made.recipe.parent / "cache") == before  # nothing computed again, no lease left
    return made


def test_every_cell_is_a_run_under_one_parent(grid: Experiment) -> None:
    (parent,) = grid.runs("grid").values()
    cells = grid.runs("train")
    assert sorted(cells) == [
        "fusion=concat seed=1", "fusion=concat seed=2", "fusion=cross_attention seed=1",
        "fusion=cross_attention seed=2",
    ]  # fmt: skip
    assert {run.data.tags["mlflow.parentRunId"] for run in cells.values()} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *cells.values())} == {"FINISHED"}
    assert cells["fusion=concat seed=2"].data.params["train.seed"] == "2"
    assert parent.data.params["train.seed"] == "1 | 2"
    artifacts = {entry.path for entry in grid.client.list_artifacts(parent.info.run_id)}
    assert {"comparison.html", "comparison.md", "comparison.csv", "trainings.csv", "recipe.yaml"} <= artifacts
    assert "| **" in parent.data.tags["mlflow.note.content"]


def test_two_trainings_ran_side_by_side(grid: Experiment) -> None:
    spans = sorted((run.info.start_time, run.info.end_time) for run in grid.runs("train").values())
    assert spans[1][0] < spans[0][1]


def test_the_table_tells_what_the_trainings_found(grid: Experiment) -> None:
    runs = grid.runs("train")
    trainings = {
        f"fusion={row['network.fusion']} seed={row['train.seed']}": row for row in grid.table("trainings.csv")
    }
    assert set(trainings) == set(runs)
    for title, row in trainings.items():
        metrics = runs[title].data.metrics
        assert row["run_id"] == runs[title].info.run_id
        assert float(row["val/miou"]) == pytest.approx(metrics["val/miou"])
        assert row["step"] == "3"
    rows = {row["network.fusion"]: row for row in grid.table("comparison.csv")}
    for fusion, row in rows.items():
        values = [runs[f"fusion={fusion} seed={seed}"].data.metrics["val/ap"] for seed in (1, 2)]
        mean, half = sum(values) / 2, 12.7062 * abs(values[0] - values[1]) / 2
        assert float(row["val/ap_mean"]) == pytest.approx(mean)
        assert float(row["val/ap_low"]) == pytest.approx(mean - half, abs=1e-6)
        assert float(row["val/ap_high"]) == pytest.approx(mean + half, abs=1e-6)
        assert (row["seeds"], row["finished"]) == ("2", "2")
    best = max(rows.values(), key=lambda row: float(row["val/miou_mean"]))
    assert [row["best"] for row in rows.values()] == [str(int(row is best)) for row in rows.values()]


def test_the_best_of_each_kind_is_named_so(grid: Experiment) -> None:
    rows = grid.table("trainings.csv")
    for name, fusion in (("small-ldznet", "cross_attention"), ("small-ldznet-concat", "concat")):
        own = [row for row in rows if row["network.fusion"] == fusion]
        best = max(own, key=lambda row: float(row["val/miou"]))
        assert len(grid.versions(name)) == 2
        assert str(grid.client.get_model_version_by_alias(name, "best").version) == best["version"]
    digests = {model_digest(path) for path in (grid.output / "models").iterdir()}
    assert len(digests) == len(rows) == 4
    assert {path.name for path in (grid.output / "models").iterdir()} == {
        f"ldznet{fusion}-seed-{seed}" for fusion in ("", "-concat") for seed in (1, 2)
    }


def test_only_what_is_missing_is_trained(grid: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    storage = grid.output / "storage"
    before, runs, (parent,) = grid.stored(storage), grid.runs("train"), grid.runs("grid").values()
    assert grid.train("fusion=cross_attention,concat", "seed=1,2,3") == 0
    after = grid.stored(storage)
    assert {key: after[key] for key in before if "/step-" in key or "/model/" in key} == {
        key: etag for key, etag in before.items() if "/step-" in key or "/model/" in key
    }
    assert len(grid.runs("train")) == 6
    (same,) = grid.runs("grid").values()
    assert same.info.run_id == parent.info.run_id
    for title, run in runs.items():
        now = grid.runs("train")[title].info
        assert (now.run_id, now.end_time) == (run.info.run_id, run.info.end_time)
    assert [len(grid.versions(name)) for name in ("small-ldznet", "small-ldznet-concat")] == [3, 3]
    shown = capsys.readouterr().out
    assert "Best training: fusion=" in shown
    assert [row["finished"] for row in grid.table("comparison.csv")] == ["3", "3"]


def test_a_training_alone_is_the_cell_that_was_trained(grid: Experiment) -> None:
    before = grid.stored(grid.output / "storage")
    runs = grid.runs("train")
    assert grid.train("fusion=concat", "seed=2") == 0
    after = grid.stored(grid.output / "storage")
    assert {key for key in after if after[key] != before.get(key)} <= {
        key for key in after if key.endswith("/finished.json")
    }
    assert {name: run.info.run_id for name, run in grid.runs("train").items()} == {
        name: run.info.run_id for name, run in runs.items()
    }
    # Registered once, and now named the best: a single training's model always is.
    latest = grid.client.get_model_version_by_alias("small-ldznet-concat", "best")
    assert model_digest(grid.output / "models/ldznet-concat") == latest.tags["ldznet_digest"]
    assert len(grid.versions("small-ldznet-concat")) == 3


@pytest.mark.usefixtures("slots")
def test_a_failed_training_does_not_lose_the_others(
    tmp_path: Path,
    small_recipe_in: Callable[..., Path],
    precompute_here: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Two ranks each, and room for two. As on a cluster that others started, one more than fit is handed to Ray: its
    # ranks wait for all of the other's room, and hold none of it.
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    made = make(tmp_path, small_recipe_in, precompute_here, workers=2)
    with pytest.raises(SystemExit) as end:
        made.train("lr=1e30,1e-3,2e-3", "train.clip_norm=null")
    assert str(end.value).startswith("ldznet: 1 of 3 trainings failed (lr=1e30)")
    assert "\n" not in str(end.value)
    (parent,) = made.runs("grid").values()
    runs = made.runs("train")
    assert {title: run.info.status for title, run in runs.items()} == {
        "lr=1e30": "FAILED", "lr=1e-3": "FINISHED", "lr=2e-3": "FINISHED",
    }  # fmt: skip
    assert parent.info.status == "FAILED"
    shown = capsys.readouterr().out
    assert "Not trained: lr=1e30." in shown
    assert [row["finished"] for row in made.table("comparison.csv")] == ["0", "1", "1"]
    assert "loss" in made.table("trainings.csv")[0]["failure"]
    assert "seeds" in made.table("comparison.csv")[0]
    # The interval needs seeds; here are none.
    assert made.table("comparison.csv")[1]["val/miou_low"] == ""


@pytest.mark.usefixtures("slots")
def test_figures_of_other_sets_where_asked(
    tmp_path: Path,
    small_recipe_in: Callable[..., Path],
    precompute_here: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    view = {"size": 64}
    made = make(tmp_path, small_recipe_in, precompute_here)
    assert made.train("seed=1,2", "--test") == 2  # said before anything is trained
    assert "there is no set to test on" in capsys.readouterr().err
    assert not (made.output / "mlflow.db").exists()
    other = f"sets.held={{split: val, view: {json.dumps(view)}, prompts: ['{{}}.']}}"
    precompute_here(made.recipe, other, "evaluate.sets=[held]")
    assert made.train("seed=1,2", "--test", other, "evaluate.sets=[held]") == 0
    (row,) = made.table("comparison.csv")
    assert 0 <= float(row["held/miou_at_val_mean"]) <= 1
    assert "held mIoU @val" in capsys.readouterr().out


def test_a_missing_cache_is_told_before_anything_starts(
    small_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = small_recipe(tracking=TrackingConfig(experiment="tests").model_dump(mode="json"))
    there = sorted(path.parent.rglob("*"))
    assert train.main([str(path), *GRID]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "run `ldznet precompute` with the same recipe" in told
    assert sorted(path.parent.rglob("*")) == there


def test_a_dry_run_lists_the_cells(
    small_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = small_recipe()
    there = sorted(path.parent.rglob("*"))
    assert train.main([str(path), *GRID, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "4 trainings over one cache" in told
    assert "fusion=concat seed=2           small-ldznet-concat-" in told
    assert sorted(path.parent.rglob("*")) == there


# Whoever starts the tests in the background may have switched Ctrl-C off for all that they start.
WITH_CTRL_C = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("jobs.train", run_name="__main__", alter_sys=True)
"""


def test_ctrl_c_ends_all_of_it(
    tmp_path: Path, small_recipe_in: Callable[..., Path], precompute_here: Callable[..., None]
) -> None:
    made = make(tmp_path, small_recipe_in, precompute_here, steps=1_000_000)
    mark = uuid4().hex
    command = [sys.executable, "-c", WITH_CTRL_C, str(made.recipe), "seed=1,2"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "LDZNET_TEST_MARK": mark},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while b", loss" not in (told := (tmp_path / "log").read_bytes()):
            assert process.poll() is None, told.decode()
            time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(180) == 130
    finally:
        process.kill()
        process.wait()
    (parent,) = made.runs("grid").values()
    assert parent.info.status == "KILLED"
    until = time.monotonic() + 60
    while (left := marked_processes(mark)) and time.monotonic() < until:
        time.sleep(0.5)
    assert not left


def marked_processes(mark: str) -> list[str]:
    """Command lines of processes that have inherited a variable's value."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if mark.encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_text())
            except OSError:  # gone since, or another user's
                continue
    return found


def test_nothing_of_a_grid_stays_in_ray(grid: Experiment) -> None:
    assert ray.cluster_resources()["CPU"] == ray.available_resources()["CPU"] == 2
