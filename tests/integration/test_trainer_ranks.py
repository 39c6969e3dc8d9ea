"""Two ranks under Ray Train with DeepSpeed: whatever is killed changes nothing; errors come through."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.numpy import load_file

from jobs.train_ranks import RanksResult, TrainingFailedError, run_ranks
from jobs.training_storage import storage_filesystem
from ldznet.errors import UserError
from pipeline.object_store.opening import open_store
from pipeline.training.config import TrainConfig

pytestmark = pytest.mark.long  # `make test-cluster`

TOY = Path(__file__).parents[1]
STEPS, EVERY = 14, 4


@contextmanager
def ray_of_two_slots() -> Iterator[None]:
    """A Ray of its own, whose processes find the tests, and the S3 server if one runs."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80 << 20,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join([str(TOY), str(Path(__file__).parent)])}},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def local_ray(seaweedfs: Any) -> Iterator[None]:
    with ray_of_two_slots():
        yield


def toy_config(**options: Any) -> TrainConfig:
    return TrainConfig(
        **{
            "steps": STEPS,
            "batch_size": 8,
            "workers": 2,
            "lr": 1e-2,
            "checkpoint_every": EVERY,
            "max_failures": 2,
            **options,
        }
    )


def start(mark: Path, storage: str, **options: Any) -> RanksResult:
    train_config = toy_config(**{key: value for key, value in options.items() if key != "trouble"})
    return run_ranks(
        train_toy,
        config={
            "train": train_config.model_dump(),
            "mark": str(mark),
            "trouble": options.get("trouble"),
            "checkpoints": f"{storage}/toy/checkpoints",
            "driver": os.getpid(),
        },
        train_config=train_config,
        storage=storage,
        name="toy",
    )


def train_toy(config: dict[str, Any]) -> dict[str, Any]:
    """What each rank runs. `trouble` strikes rank 1 once, before step 11."""
    import torch
    from unit.pipeline.training.training_toy import ToyNetwork, ToySource, forward, loss

    from pipeline.object_store.opening import open_store
    from pipeline.training import ranks
    from pipeline.training.checkpoint_store import CheckpointStore
    from pipeline.training.ema import EMA, model_state
    from pipeline.training.engine import build_engine
    from pipeline.training.loop import train

    train_config, mark = TrainConfig(**config["train"]), Path(config["mark"])
    (mark / f"{ranks.rank()}-{os.getpid()}").touch()

    class Source(ToySource):
        def epoch(self, position: Any) -> Any:
            for number, batch in enumerate(super().epoch(position), position.batch):
                if ranks.rank() == 1 and (position.epoch, number) == (1, 2) and config["trouble"]:
                    strike(config, mark)
                yield batch

    ranks.seed_everything(100 + ranks.rank())
    engine = build_engine(ToyNetwork(dropout=0.2), forward=forward, loss=loss, config=train_config)
    ema, steps = EMA(engine), []

    class Steps:
        def on_start(self, *, step: int, total: int) -> None:
            steps.append(step)

        def on_step(self, metrics: Any, *, step: int) -> None:
            steps.append(metrics["loss"])

        def on_validation(self, metrics: Any, *, step: int, best: bool) -> None: ...

        def on_checkpoint(self, location: str, *, step: int, seconds: float) -> None: ...

    source = Source(batch_size=8, rank=ranks.rank(), ranks=ranks.world_size())
    train(
        engine=engine,
        ema=ema,
        source=source,
        config=train_config,
        observer=Steps(),
        checkpoints=CheckpointStore(open_store(config["checkpoints"]), keep=2),
    )
    state = model_state(engine, None) | {f"ema.{k}": v for k, v in ema.state_dict().items()}
    engine.close()
    return {
        "state": {name: tensor.numpy() for name, tensor in state.items()},
        "steps": steps,
        "threads": torch.get_num_threads(),
        "omp": os.environ["OMP_NUM_THREADS"],
    }


def strike(config: dict[str, Any], mark: Path) -> None:
    """Once, where it is a kill or a notice."""
    trouble = config["trouble"]
    if trouble == "user error":
        raise UserError("the recipe names a thing that is not there: name another")
    if trouble == "fire":
        raise RuntimeError("the disk is on fire")
    try:
        (mark / "struck").touch(exist_ok=False)
    except FileExistsError:
        return
    if trouble == "notice":
        os.kill(os.getpid(), signal.SIGTERM)
        return
    beside = psutil.Process(os.getppid()).children()
    victims = {
        "rank": [os.getpid()],
        "controller": [each.pid for each in beside if "TrainController" in each.cmdline()[0]],
        "driver": [config["driver"]],
    }
    (victim,) = victims[trouble]
    os.kill(victim, signal.SIGKILL)
    time.sleep(600)  # it ends with its controller


def processes(mark: Path) -> list[int]:
    return [int(path.name.split("-")[1]) for path in mark.glob("[01]-*")]


@pytest.fixture(scope="module")
def calm(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> RanksResult:
    folder = tmp_path_factory.mktemp("calm")
    result = start(folder, str(folder / "runs"))
    assert len(processes(folder)) == 2
    assert result.value["steps"][0] == 0
    assert (result.value["threads"], result.value["omp"]) == (1, "1")
    wait_until_gone(processes(folder))
    return result


def assert_equal(value: dict[str, Any], calm: RanksResult, *, begun: set[int]) -> None:
    """The last start began after one of these steps, and from there on all is bitwise what nobody disturbed."""
    first = value["steps"][0]
    assert first in begun
    assert value["steps"][1:] == calm.value["steps"][1 + first :]
    assert value["state"].keys() == calm.value["state"].keys()
    for name, expected in calm.value["state"].items():
        assert (value["state"][name] == expected).all(), name


@pytest.mark.slow
def test_a_killed_rank_resumes_from_s3_and_ends_bitwise_equal(
    calm: RanksResult, tmp_path: Path, s3_url: str
) -> None:
    struck = start(tmp_path, s3_url, trouble="rank")
    assert len(processes(tmp_path)) == 4  # both ranks twice
    assert_equal(struck.value, calm, begun={4, 8})  # the last checkpoint may still have been on its way
    keys = [info.key for info in open_store(f"{s3_url}/toy/checkpoints").list()]
    assert {key.split("-")[1] for key in keys} == {"00000012", "00000014"}
    wait_until_gone(processes(tmp_path))

    again = start(tmp_path, s3_url)  # a second call with the same name: nothing is left to do
    assert_equal(again.value, calm, begun={STEPS})


@pytest.mark.slow
def test_a_killed_controller_takes_its_ranks_along_and_all_start_again(
    calm: RanksResult, tmp_path: Path
) -> None:
    struck = start(tmp_path, str(tmp_path / "runs"), trouble="controller")
    assert len(processes(tmp_path)) == 4
    assert_equal(struck.value, calm, begun={4, 8})
    wait_until_gone(processes(tmp_path))


@pytest.mark.slow
def test_a_notice_to_a_rank_is_no_failure(calm: RanksResult, tmp_path: Path) -> None:
    noticed = start(tmp_path, str(tmp_path / "runs"), trouble="notice", max_failures=0)
    assert len(processes(tmp_path)) == 4
    assert_equal(noticed.value, calm, begun={11})  # the step of the notice was ended, and kept
    wait_until_gone(processes(tmp_path))


DRIVER = """
import json, os, sys
from pathlib import Path
sys.path[:0] = json.loads(sys.argv[1])
import ray
from integration import test_trainer_ranks as own
from safetensors.numpy import save_file
mark, trouble = Path(sys.argv[2]), sys.argv[3] or None
with own.ray_of_two_slots():
    result = own.start(mark, str(mark / "runs"), trouble=trouble)
save_file(result.value["state"], mark / "state")
(mark / "steps").write_text(json.dumps(result.value["steps"]))
"""


@pytest.mark.slow
def test_a_killed_driver_goes_on_when_called_again(calm: RanksResult, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]

    def drive(trouble: str) -> int:
        paths = json.dumps([str(TOY), str(root)])
        command = [sys.executable, "-c", DRIVER, paths, str(tmp_path), trouble]
        log = tmp_path / f"driver-{trouble}.log"
        with log.open("wb") as output:
            environment = {
                name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")
            }
            done = subprocess.run(
                command, check=False, cwd=root, stdout=output, stderr=output, env=environment, timeout=500
            )
        return done.returncode

    assert drive("driver") == -signal.SIGKILL
    wait_until_gone(processes(tmp_path))
    assert drive("") == 0
    value = {"steps": json.loads((tmp_path / "steps").read_text()), "state": load_file(tmp_path / "state")}
    assert_equal(value, calm, begun={4, 8})
    assert len(processes(tmp_path)) == 4


def wait_until_gone(pids: list[int]) -> None:
    until = time.monotonic() + 120
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.slow
def test_a_user_error_comes_back_at_once(local_ray: None, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        start(tmp_path, str(tmp_path / "runs"), trouble="user error")
    assert str(caught.value) == "the recipe names a thing that is not there: name another"
    assert len(processes(tmp_path)) == 2  # no restart
    wait_until_gone(processes(tmp_path))


@pytest.mark.slow
def test_any_other_error_names_its_cause(local_ray: None, tmp_path: Path) -> None:
    says = "after 0 restarts; rank 1: RuntimeError: the disk is on fire"
    with pytest.raises(TrainingFailedError, match=says) as caught:
        start(tmp_path, str(tmp_path / "runs"), trouble="fire", max_failures=0)
    assert isinstance(caught.value.__cause__, RuntimeError)
    wait_until_gone(processes(tmp_path))


def test_a_storage_that_cannot_be_is_named(seaweedfs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no bucket s3://elsewhere"):
        storage_filesystem("s3://elsewhere/runs")
    with pytest.raises(UserError, match="give s3://bucket/prefix"):
        storage_filesystem("gs://bucket/runs")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError, match=f"no access to s3://{seaweedfs.bucket}"):
        storage_filesystem(f"s3://{seaweedfs.bucket}/runs")
