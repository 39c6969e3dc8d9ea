"""A training while its MLflow server is slow, failing or gone: it goes on, and one run ends with every step once."""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fault.chaos_proxy import served
from unit.pipeline.training.training_toy import ToyNetwork, ToySource, forward, loss

from pipeline.loading.sample_order import Position
from pipeline.object_store.opening import open_store
from pipeline.services.mlflow_server import MlflowServer
from pipeline.tracking import background, tracker
from pipeline.tracking.background import BackgroundTracker
from pipeline.tracking.client import open_client
from pipeline.tracking.config import TrackingConfig
from pipeline.tracking.spool import MetricPoint, MetricSpool
from pipeline.tracking.tracker import Tracker
from pipeline.training import ranks
from pipeline.training.checkpoint_store import CheckpointStore
from pipeline.training.config import TrainConfig
from pipeline.training.ddp_engine import DDPEngine
from pipeline.training.loop import train
from pipeline.training.observer import TrainingObserver

pytestmark = [pytest.mark.slow, pytest.mark.long]  # `make test-cluster`

STEPS = 30
METRICS = ("train/loss", "train/lr", "train/grad_norm", "train/epoch", "train/samples_per_second")


class BehindProxy(MlflowServer):
    """Lets clients in that name a proxy's port."""

    def command(self) -> Sequence[str | Path]:
        given = super().command()
        return [
            "--allowed-hosts=127.0.0.1:*" if str(word).startswith("--allowed-hosts") else word
            for word in given
        ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("mlflow")
    with BehindProxy(folder=folder, artifacts=str(folder / "artifacts"), store={}) as running:
        yield running


class Weather:
    """What the proxy does to every request, until it is changed. `held` answers none before `let_go`."""

    def __init__(self) -> None:
        self.word: str | None = None
        self.held = False
        self.requests = 0
        self._gate = threading.Event()

    def __call__(self, method: str, path: str) -> str | None:
        self.requests += 1
        if self.held:
            self._gate.wait(60)
        return self.word

    def let_go(self) -> None:
        self.held, self.word = False, None
        self._gate.set()


@pytest.fixture
def weather(server: MlflowServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Weather]:
    made = Weather()
    with served(SimpleNamespace(endpoint=server.address), made) as address:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.setattr(background, "_SECONDS_BETWEEN_SENDS", 0.05)
        monkeypatch.setattr(tracker, "_FLUSH_SECONDS", 0.05)
        monkeypatch.setattr(tracker, "_RETRY_SECONDS", 0.1)
        monkeypatch.chdir(tmp_path)
        yield made
        made.let_go()


QUIET = TrackingConfig(experiment="tests", system_metrics=False)


def new_run(folder: Path) -> str:
    """The driver's part: it makes the run."""
    driver = Tracker(QUIET, folder=folder)
    run_id = driver.start(job="train")
    assert run_id is not None
    return run_id


class Told(ToySource):
    """A source that calls something before a batch."""

    def __init__(self, calls: dict[int, Callable[[], None]]) -> None:
        super().__init__(batch_size=4, rank=0, ranks=1)
        self.calls = calls

    def epoch(self, position: Position) -> Iterator[Any]:
        for number, batch in enumerate(super().epoch(position), position.batch):
            self.calls.get(position.epoch * len(self) + number + 1, lambda: None)()
            yield batch


def run(
    folder: Path,
    run_id: str | None,
    *,
    calls: dict[int, Callable[[], None]] | None = None,
    steps: int = STEPS,
    owner: str | None = None,
) -> None:
    """What rank 0 does, from the last checkpoint on."""
    config = TrainConfig(engine="ddp", steps=steps, batch_size=4, lr=1e-2, checkpoint_every=10)
    with ranks.process_group(), BackgroundTracker(QUIET, folder=folder) as tracking:
        tracking.start(job="train", run_id=run_id, owner=owner)
        engine = DDPEngine(ToyNetwork(), forward=forward, loss=loss, config=config)
        train(
            engine=engine,
            ema=None,
            source=Told(calls or {}),
            config=config,
            observer=TrainingObserver(tracker=tracking, title="toy"),
            checkpoints=CheckpointStore(open_store(folder / "checkpoints"), keep=1),
        )


def logged(server: MlflowServer, run_id: str, metric: str) -> list[int]:
    """Steps in the order in which the server has them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        return [point.step for point in open_client(server.address).get_metric_history(run_id, metric)]


def assert_whole(server: MlflowServer, run_id: str, steps: int = STEPS) -> None:
    for metric in METRICS:
        assert logged(server, run_id, metric) == list(range(1, steps + 1)), metric


def waiting(folder: Path) -> list[MetricPoint]:
    return [point for path in folder.glob("metrics-*.jsonl") for point in MetricSpool(path).read()]


def test_a_server_that_does_not_answer_holds_no_step_up(
    server: MlflowServer, weather: Weather, tmp_path: Path
) -> None:
    run_id = new_run(tmp_path)
    weather.held = True
    # All steps are done before the server answers a single request: with one that waited for it, none would be.
    run(tmp_path, run_id, calls={STEPS: weather.let_go})
    assert_whole(server, run_id)
    assert waiting(tmp_path) == []


def test_a_server_that_fails_leaves_no_gap(
    server: MlflowServer, weather: Weather, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = new_run(tmp_path)
    until_tried = waits_for_requests(weather)

    def fail() -> None:
        weather.word = "500"
        until_tried()

    def lose_answers() -> None:  # it is done, and nobody hears of it
        weather.word = "lose the answer"
        until_tried()

    caplog.set_level(logging.INFO)
    run(tmp_path, run_id, calls={5: fail, 15: lose_answers, 25: weather.let_go})
    assert_whole(server, run_id)
    assert waiting(tmp_path) == []
    assert "MLflow is away" in caplog.text
    assert "MLflow is back" in caplog.text


def waits_for_requests(weather: Weather) -> Callable[[], None]:
    """Something that returns after the server was asked again."""

    def wait() -> None:
        before = weather.requests
        while weather.requests < before + 2:
            threading.Event().wait(0.02)

    return wait


def test_a_server_gone_for_good_is_reported_and_what_is_missing_kept(
    server: MlflowServer, weather: Weather, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = new_run(tmp_path)

    def go() -> None:
        weather.word = "reset"

    run(tmp_path, run_id, calls={11: go})
    assert "MLflow was away to the end" in caplog.text
    kept = {point.step for point in waiting(tmp_path) if point.key == "train/loss"}
    there = logged(server, run_id, "train/loss")
    assert kept | set(there) == set(range(1, STEPS + 1))
    # The same training, called again once it is back, delivers it.
    weather.let_go()
    run(tmp_path, run_id)
    assert_whole(server, run_id)
    assert waiting(tmp_path) == []


def test_a_server_gone_from_the_start_gets_all_when_it_is_back(
    server: MlflowServer, weather: Weather, tmp_path: Path
) -> None:
    weather.word = "reset"
    driver = Tracker(QUIET, folder=tmp_path)
    assert driver.start(job="train", owner="toy") is None
    run(tmp_path, None, owner="toy")
    weather.let_go()
    driver.finish()
    assert driver.run_id is not None
    assert_whole(server, driver.run_id)
    assert waiting(tmp_path) == []


KILLED = """
import os, sys, signal, json
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fault import test_training_tracking as own
own.run(Path(sys.argv[2]), sys.argv[3], calls={int(sys.argv[4]): lambda: os.kill(os.getpid(), signal.SIGKILL)})
"""


def test_a_killed_rank_loses_no_metric_and_logs_none_twice(
    server: MlflowServer, weather: Weather, tmp_path: Path
) -> None:
    run_id = new_run(tmp_path)
    tests = str(Path(__file__).parents[1])
    for step in (4, 17, 18):  # before a checkpoint, and twice after one: 11 to 16 are replayed
        code = [sys.executable, "-c", KILLED, tests, str(tmp_path), run_id, str(step)]
        done = subprocess.run(code, check=False, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == -signal.SIGKILL
    run(tmp_path, run_id)
    assert_whole(server, run_id)
    assert waiting(tmp_path) == []
    assert not list(tmp_path.glob("metrics-*")), "nothing waits"


KILLED_WITHOUT_A_RUN = """
import os, sys, signal
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fault import test_training_tracking as own
folder = Path(sys.argv[2])
driver = own.Tracker(own.QUIET, folder=folder)
assert driver.start(job="train", owner="toy") is None
calls = {int(sys.argv[3]): lambda: os.kill(os.getpid(), signal.SIGKILL)}
own.run(folder, None, calls=calls, owner="toy")
"""


def test_a_driver_killed_before_there_was_a_run_loses_no_metric_and_makes_one_run(
    server: MlflowServer, weather: Weather, tmp_path: Path
) -> None:
    tests, made = str(Path(__file__).parents[1]), list[str]()
    weather.word = "reset"
    for step in (4, 17):  # before a checkpoint, and after one: 11 to 16 are replayed
        code = [sys.executable, "-c", KILLED_WITHOUT_A_RUN, tests, str(tmp_path), str(step)]
        done = subprocess.run(code, check=False, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == -signal.SIGKILL
    assert {point.step for point in waiting(tmp_path)} == set(range(1, 17))
    weather.let_go()
    driver = Tracker(QUIET, folder=tmp_path)
    run_id = driver.start(job="train", owner="toy", on_created=made.append)
    run(tmp_path, run_id, owner="toy")
    driver.finish()
    assert made == [run_id]
    assert_whole(server, made[0])
    assert not list(tmp_path.glob("metrics-*")), "nothing waits"


@pytest.mark.long
def test_a_server_gone_for_a_minute(server: MlflowServer, weather: Weather, tmp_path: Path) -> None:
    run_id = new_run(tmp_path)

    def go() -> None:
        weather.word = "reset"
        threading.Timer(60, weather.let_go).start()

    steps = 3000
    run(tmp_path, run_id, calls={11: go, steps: lambda: weather._gate.wait(90) and None}, steps=steps)
    assert_whole(server, run_id, steps)
    assert waiting(tmp_path) == []
