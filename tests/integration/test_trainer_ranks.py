"""Two ranks under Ray Train with DeepSpeed: a killed rank changes nothing, errors come through, S3 holds the rest."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.train_ranks import RanksResult, TrainingFailedError, run_ranks
from jobs.training_storage import storage_filesystem
from ldznet.errors import UserError
from pipeline.training.config import TrainConfig

TOY = Path(__file__).parents[1]
STEPS, EVERY = 14, 4


@pytest.fixture(scope="module")
def local_ray(seaweedfs: Any) -> Iterator[None]:
    """A Ray of two slots, whose processes find the S3 server."""
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
        config={"train": train_config.model_dump(), "mark": str(mark), "trouble": options.get("trouble")},
        train_config=train_config,
        storage=storage,
        name="toy",
    )


def train_toy(config: dict[str, Any]) -> dict[str, Any]:
    """What each rank runs. `trouble` strikes rank 1 once, before step 11."""
    import torch
    from unit.pipeline.training.training_toy import ToyNetwork, ToySource, forward, loss

    from jobs.ray_checkpoints import RayCheckpoints
    from pipeline.training import ranks
    from pipeline.training.ema import EMA, model_state
    from pipeline.training.engine import build_engine
    from pipeline.training.loop import train

    train_config, mark = TrainConfig(**config["train"]), Path(config["mark"])
    (mark / f"{ranks.rank()}-{os.getpid()}").touch()

    class Source(ToySource):
        def epoch(self, position: Any) -> Any:
            for number, batch in enumerate(super().epoch(position), position.batch):
                if ranks.rank() == 1 and (position.epoch, number) == (1, 2) and config["trouble"]:
                    strike(config["trouble"], mark)
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
        checkpoints=RayCheckpoints(),
    )
    state = model_state(engine, None) | {f"ema.{k}": v for k, v in ema.state_dict().items()}
    engine.close()
    return {
        "state": {name: tensor.numpy() for name, tensor in state.items()},
        "steps": steps,
        "threads": torch.get_num_threads(),
        "omp": os.environ["OMP_NUM_THREADS"],
    }


def strike(trouble: str, mark: Path) -> None:
    if trouble == "kill once":
        try:
            (mark / "struck").touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)
    if trouble == "user error":
        raise UserError("the recipe names a thing that is not there: name another")
    raise RuntimeError("the disk is on fire")


def processes(mark: Path) -> list[int]:
    return [int(path.name.split("-")[1]) for path in mark.glob("[01]-*")]


@pytest.mark.slow
def test_a_killed_rank_resumes_from_s3_and_ends_bitwise_equal(
    local_ray: None, tmp_path: Path, s3_url: str
) -> None:
    marks = [tmp_path / "calm", tmp_path / "struck"]
    for mark in marks:
        mark.mkdir()
    calm = start(marks[0], str(tmp_path / "runs"))
    struck = start(marks[1], s3_url, trouble="kill once")

    assert len(processes(marks[0])) == 2
    assert len(processes(marks[1])) == 4  # both ranks twice
    assert calm.value["steps"][0] == 0
    assert struck.value["steps"][0] in {4, 8}  # a kill right after a report may go back one further
    assert struck.value["steps"][1:] == calm.value["steps"][1 + struck.value["steps"][0] :]
    assert struck.value["state"].keys() == calm.value["state"].keys()
    for name, expected in calm.value["state"].items():
        assert (struck.value["state"][name] == expected).all(), name
    assert (calm.value["threads"], calm.value["omp"]) == (1, "1")

    filesystem, path = storage_filesystem(s3_url)
    assert struck.checkpoint == f"{path}/toy/step-{STEPS:08d}"
    assert folders_with_files(filesystem, f"{path}/toy") == {"step-00000012", "step-00000014"}
    wait_until_gone(processes(marks[0]) + processes(marks[1]))

    again = start(marks[1], s3_url)  # a second call with the same name: nothing is left to do
    assert again.value["steps"] == [STEPS]
    for name, expected in calm.value["state"].items():
        assert (again.value["state"][name] == expected).all(), name


def folders_with_files(filesystem: Any, path: str) -> set[str]:
    from pyarrow.fs import FileSelector

    found = filesystem.get_file_info(FileSelector(path, recursive=True))
    files = [info.path.removeprefix(f"{path}/").split("/") for info in found if info.is_file]
    return {parts[0] for parts in files if len(parts) > 1}


def wait_until_gone(pids: list[int]) -> None:
    until = time.monotonic() + 60
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
