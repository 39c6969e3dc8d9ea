"""One run across restarts, and each training's own, while MLflow is away at the start. Real MLflow on SQLite."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.object_store.opening import open_store
from pipeline.recipe import Recipe
from pipeline.recipe_file import load_recipe
from pipeline.tracking.background import BackgroundTracker
from pipeline.tracking.client import open_client, sqlite_uri
from pipeline.tracking.config import TrackingConfig
from pipeline.tracking.tracker import Tracker
from pipeline.training.run import RUN_RECORD, TrainingRun

pytestmark = pytest.mark.long  # `make test-cluster`


class Outage:
    """An MLflow whose database cannot be made, because a file is in the place of its folder, until it ends."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "run"
        self._obstacle = tmp_path / "store"
        self._obstacle.write_text("not a folder")
        self.move(sqlite_uri(self._obstacle / "mlflow.db"))

    def end(self) -> None:
        self._obstacle.unlink()

    def move(self, uri: str) -> None:
        self.uri = uri
        self.config = TrackingConfig(uri=uri, experiment="tests", system_metrics=False)

    def driver(self) -> Tracker:
        return Tracker(self.config, folder=self.folder)

    def rank(self, owner: str, run_id: str | None = None) -> BackgroundTracker:
        made = BackgroundTracker(self.config, folder=self.folder)
        made.start(job="train", run_id=run_id, owner=owner)
        return made

    def runs(self) -> list[str]:
        client = open_client(self.uri)
        experiment = client.get_experiment_by_name("tests")
        return [run.info.run_id for run in client.search_runs([experiment.experiment_id])]

    def losses(self, run_id: str) -> list[tuple[int, float]]:
        points = open_client(self.uri).get_metric_history(run_id, "loss")
        return [(point.step, point.value) for point in points]

    def left(self) -> list[str]:
        return [path.name for path in self.folder.glob("metrics-*")]


@pytest.fixture
def outage(tmp_path: Path) -> Outage:
    return Outage(tmp_path)


def kill(rank: BackgroundTracker) -> None:
    """Stop its thread where it is: nothing is delivered, moved or said any more."""
    assert rank._thread is not None
    rank._calls.put(None)
    rank._thread.join()


def log_losses(tracker: Tracker, steps: range, *, value: float = 1.0) -> None:
    for step in steps:
        tracker.log_metrics({"loss": value}, step)


@pytest.fixture
def recipe(outage: Outage, small_recipe: Callable[..., Path]) -> Recipe:
    tracking = {"uri": outage.uri, "experiment": "tests", "system_metrics": False}
    train = {"steps": 4, "batch_size": 8, "lr": 1e-3, "features": "online"}
    return load_recipe(small_recipe(tracking=tracking, train=train), [])


def recorded_run(recipe: Recipe) -> str | None:
    training = TrainingRun(recipe)
    store = open_store(f"{training.storage}/{training.name}")
    return json.loads(store.get(RUN_RECORD))["run_id"] if store.stat(RUN_RECORD) else None


def test_a_run_that_is_made_at_the_end_is_the_next_call_s_too(outage: Outage, recipe: Recipe) -> None:
    with TrainingRun(recipe).recorded() as record:
        assert (record.run_id, recorded_run(recipe)) == (None, None)
        outage.end()
    (run_id,) = outage.runs()
    assert recorded_run(recipe) == run_id
    with TrainingRun(recipe).recorded() as record:
        assert record.run_id == run_id
    assert outage.runs() == [run_id]


def test_the_next_start_delivers_what_a_killed_training_without_a_run_left(
    outage: Outage, recipe: Recipe
) -> None:
    training = TrainingRun(recipe)
    killed = outage.driver()
    assert killed.start(job="train", owner=training.metrics_owner) is None
    rank = outage.rank(training.metrics_owner)
    log_losses(rank, range(1, 6))
    kill(rank)  # and the driver with it
    for value in (
        2.0,
        3.0,
    ):  # once more without a run, then with one; both go on from the checkpoint of step 3
        with TrainingRun(recipe).recorded() as record:
            rank = outage.rank(training.metrics_owner, record.run_id)
            log_losses(rank, range(4, 8), value=value)
            rank.finish()
            if value == 2.0:
                outage.end()
    (run_id,) = outage.runs()
    expected = [(step, 1.0 if step <= 5 else 2.0) for step in range(1, 8)]
    assert outage.losses(run_id) == expected
    assert outage.left() == []


def test_a_known_run_goes_to_the_ranks_while_mlflow_is_away(outage: Outage, recipe: Recipe) -> None:
    training = TrainingRun(recipe)
    outage.end()
    with training.recorded() as record:
        run_id = str(record.run_id)
    database = Path(outage.uri.removeprefix("sqlite:///"))
    database.rename(away := database.with_name("away.db"))
    database.mkdir()  # in its place, so that nothing can be made there
    with training.recorded() as record:
        assert record.run_id == run_id
        rank = outage.rank(training.metrics_owner, record.run_id)
        log_losses(rank, range(3))
        rank.finish()
        database.rmdir()
        away.rename(database)
    assert outage.runs() == [run_id]
    assert outage.losses(run_id) == [(0, 1.0), (1, 1.0), (2, 1.0)]
    assert outage.left() == []


def test_trainings_without_runs_do_not_mix_in_one_folder(outage: Outage) -> None:
    drivers = {owner: outage.driver() for owner in ("one", "other")}
    for owner, driver in drivers.items():
        assert driver.start(job="train", owner=owner) is None
    ranks = {owner: outage.rank(owner) for owner in drivers}
    for step in range(3):
        for owner, rank in ranks.items():
            rank.log_metrics({"loss": float(len(owner))}, step)
    ranks["one"].finish()
    kill(ranks["other"])
    outage.end()
    for driver in drivers.values():
        driver.finish()
    for owner, driver in drivers.items():
        assert outage.losses(str(driver.run_id)) == [(step, float(len(owner))) for step in range(3)], owner
    assert outage.left() == []


def test_what_a_training_left_is_no_other_s(outage: Outage, caplog: pytest.LogCaptureFixture) -> None:
    rank = outage.rank("one")
    log_losses(rank, range(2))
    rank.finish()
    assert "MLflow was away: 2 metric values are kept in" in caplog.text
    outage.end()
    for owner in (None, "other"):
        driver = outage.driver()
        driver.start(job="train", owner=owner)
        driver.finish()
        assert outage.losses(str(driver.run_id)) == []
    assert outage.left() == ["metrics-spool-one.jsonl"]


def test_a_run_whose_record_fails_is_recorded_later(outage: Outage, caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []

    def record(run_id: str) -> None:
        told.append(run_id)
        if len(told) == 1:
            raise OSError("the store is away")

    outage.end()
    driver = outage.driver()
    run_id = driver.start(job="train", owner="one", on_created=record)
    driver.set_tags({"one": "1"})
    driver.finish()
    assert told == [run_id, run_id]
    assert caplog.text.count("could not be recorded yet: the store is away") == 1
    assert "MLflow is away" not in caplog.text


def test_equal_trainings_in_several_storages_have_files_of_their_own(recipe: Recipe) -> None:
    storages = ("/storage/one", "/storage/other", "/storage/one")
    one, other, again = (TrainingRun(recipe.model_copy(update={"storage": place})) for place in storages)
    assert one.name == other.name
    assert one.metrics_owner == again.metrics_owner != other.metrics_owner


@pytest.mark.parametrize("gone", ["deleted", "in another store"])
def test_a_run_that_mlflow_does_not_have_gives_way_to_a_new_one(
    outage: Outage, recipe: Recipe, gone: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outage.end()
    with TrainingRun(recipe).recorded() as record:
        stale = str(record.run_id)
    if gone == "deleted":
        open_client(outage.uri).delete_run(stale)
    else:
        outage.move(sqlite_uri(tmp_path / "other" / "mlflow.db"))
        recipe = recipe.model_copy(update={"tracking": outage.config})
    training = TrainingRun(recipe)
    for steps in (range(3), range(2, 5)):  # the second time the new run is the one that is known
        with training.recorded() as record:
            assert recorded_run(recipe) == record.run_id != stale
            rank = outage.rank(training.metrics_owner, record.run_id)
            log_losses(rank, steps)
            rank.finish()
            assert record.tracker.use("registering", lambda _, run_id: run_id) == record.run_id
    (run_id,) = outage.runs()
    assert recorded_run(recipe) == run_id
    assert [step for step, _ in outage.losses(run_id)] == [0, 1, 2, 3, 4]
    assert outage.left() == []
    assert caplog.text.count(f"MLflow has no run {stale} any more") == 1
    assert "MLflow is away" not in caplog.text


def test_a_rank_makes_no_run_in_place_of_one_that_is_gone(
    outage: Outage, recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outage.end()
    with TrainingRun(recipe).recorded() as record:
        stale = str(record.run_id)
    obstacle = tmp_path / "other"
    obstacle.write_text("not a folder")
    outage.move(sqlite_uri(obstacle / "mlflow.db"))
    recipe = recipe.model_copy(update={"tracking": outage.config})
    training = TrainingRun(recipe)
    with training.recorded() as record:
        assert record.run_id == recorded_run(recipe) == stale, "nobody could ask"
        obstacle.unlink()
        for steps in (range(2), range(1, 4)):  # the ranks are lost, and come back
            rank = outage.rank(training.metrics_owner, record.run_id)
            log_losses(rank, steps)
            rank.finish()
        assert outage.runs() == []
        assert caplog.text.count(f"MLflow has no run {stale} any more: metrics wait") == 2
    (run_id,) = outage.runs()  # the driver's
    assert recorded_run(recipe) == run_id
    assert [step for step, _ in outage.losses(run_id)] == [0, 1, 2, 3]
    assert outage.left() == []
