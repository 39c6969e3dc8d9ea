"""Starts the ranks of a training by Ray Train, and keeps its checkpoints in the run's storage."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jobs.training_storage import storage_filesystem
from ldznet.errors import DataFault, UserError
from pipeline.training.config import TrainConfig

logger = logging.getLogger(__name__)

Worker = Callable[[dict[str, Any]], Any]

_PLACEMENT_TRIES = 3  # of a minute each: what a cluster gets to bring up nodes
# Ray Train looks at its workers this often; a report waits for the next look (Ray's own default: 2 s).
_POLL_SECONDS = "0.2"


class TrainingFailedError(RuntimeError):
    """The ranks failed more often than `max_failures`; the cause is chained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RanksResult:
    """What came of a training: rank 0's return value and where the newest checkpoint is."""

    value: Any
    checkpoint: str | None  # key of its folder in the storage
    metrics: dict[str, Any]  # reported with that checkpoint


def run_ranks(
    worker: Worker, *, config: dict[str, Any], train_config: TrainConfig, storage: str, name: str
) -> RanksResult:
    """Run `worker(config)` on every rank, in one torch process group, on the Ray that this process has joined.

    A rank that is lost brings all ranks back, up to `max_failures` times; `RayCheckpoints` then gives the last
    checkpoint. Calling again with the same storage and name goes on from there too.

    Args:
        worker: Picklable; runs on each rank with the process group open (gloo on the CPU, NCCL on GPUs).
        config: Handed to the worker; picklable.
        train_config: Ranks, threads, restarts, checkpoints to keep.
        storage: `s3://bucket/prefix` (endpoint and credentials from `AWS_*` on every node), `file://` or a folder that
            every node sees.
        name: The run's folder in the storage.

    Raises:
        UserError: Raised by a rank, or the cluster cannot hold the ranks. Never retried, nor is a `DataFault` or a
            `NonFiniteLossError`.
        TrainingFailedError: Anything else that ended a rank once too often.
    """
    from ray.train import (
        CheckpointConfig,
        ControllerError,
        FailureConfig,
        LoggingConfig,
        RunConfig,
        ScalingConfig,
        WorkerGroupError,
    )

    use_gpu = _use_gpus(train_config)
    filesystem, path = storage_filesystem(storage)
    lasting = _cluster_outlives_us()
    for key, value in _ray_train_settings(lasting=lasting).items():
        os.environ.setdefault(key, value)
    trainer = _trainer_class(lasting=lasting)(
        _start_rank,
        train_loop_config={"worker": worker, "config": config, "threads": train_config.threads},
        scaling_config=ScalingConfig(
            num_workers=train_config.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": train_config.threads} | ({"GPU": 1} if use_gpu else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(
                max_failures=train_config.max_failures, controller_failure_limit=_PLACEMENT_TRIES - 1
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=train_config.keep_checkpoints),
            logging_config=LoggingConfig(log_level="CRITICAL"),
            callbacks=[_stop_on_fatal()],
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": str(train_config.threads)}},
        ),
    )
    try:
        with _ctrl_c_interrupts():
            result = trainer.fit()
    except ControllerError as error:
        raise _controller_failure(error.controller_failure, train_config) from error
    except WorkerGroupError as error:
        raise _worker_failure(error.worker_failures, train_config) from _first_cause(error.worker_failures)
    checkpoint = result.checkpoint.path if result.checkpoint is not None else None
    return RanksResult(value=result.return_value, checkpoint=checkpoint, metrics=result.metrics or {})


@contextmanager
def _ctrl_c_interrupts() -> Iterator[None]:
    """Ray Train answers Ctrl-C by leaving the process, and keeps its handler: make it an interrupt, and ours again."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as leaving:
        raise KeyboardInterrupt from leaving
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _start_rank(config: dict[str, Any]) -> Any:
    import torch
    from ray.train.v2._internal.execution import context

    torch.set_num_threads(config["threads"])
    for name in (
        "ray.train",
        context.__file__,
    ):  # the second is a slip of Ray's: a logger named after its file
        logging.getLogger(name).setLevel(logging.ERROR)
    return config["worker"](config["config"])


def cluster_gpus() -> int:
    """GPUs of the Ray that this process has joined; `TrainConfig.fitted_to_gpus` takes the number."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def _use_gpus(config: TrainConfig) -> bool:
    gpus = cluster_gpus()
    if 0 < gpus < config.workers:
        fitting = config.fitted_to_gpus(gpus).workers
        raise UserError(
            f"train.workers={config.workers} ranks, but the cluster has {gpus} GPU{'' if gpus == 1 else 's'}: "
            f"set train.workers={fitting} (the batch stays {config.batch_size})"
        )
    return gpus > 0


def _cluster_outlives_us() -> bool:
    """Whether Ray has its state API: a cluster does, the small Ray of one machine, which ends with us, does not."""
    import ray
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    try:
        list_nodes(address=ray.get_runtime_context().gcs_address, limit=1, timeout=10)
    except RayStateApiException:
        return False
    return True


def _ray_train_settings(*, lasting: bool) -> dict[str, str]:
    settings = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": _POLL_SECONDS,
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it prints everything twice
    }
    return settings if lasting else settings | {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


def _trainer_class(*, lasting: bool) -> Any:
    """Ray's TorchTrainer; on a Ray that ends with us, without the actor that would clean up after us.

    That actor asks the state API each second, and complains each second where there is none. A private hook: Ray is
    pinned.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    if lasting:
        return TorchTrainer

    class Trainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [each for each in callbacks if not isinstance(each, PlacementGroupCleanerCallback)]

    return Trainer


def _stop_on_fatal() -> Any:
    """A Ray Train callback that ends the run at once for what no restart can mend."""
    from ray.train import UserCallback

    class StopOnFatal(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
            for error in worker_exceptions.values():
                if _is_fatal(error):
                    raise error

    return StopOnFatal()


def _is_fatal(error: BaseException) -> bool:
    from pipeline.training.engine import NonFiniteLossError

    return isinstance(error, UserError | DataFault | NonFiniteLossError)


def _controller_failure(error: BaseException, config: TrainConfig) -> BaseException:
    if _is_fatal(error):
        return error
    if "Startup" in type(error).__name__:
        return UserError(
            f"the Ray cluster found no room for {config.workers} ranks of {config.threads} CPU threads: "
            "lower train.workers or train.threads, or add nodes"
        )
    return TrainingFailedError(f"training could not go on: {type(error).__name__}: {error}")


def _worker_failure(failures: Mapping[int, BaseException], config: TrainConfig) -> BaseException:
    rank = _first_rank(failures)
    error = failures[rank]
    summary = (str(error).strip().splitlines() or [""])[0]
    restarts = f"{config.max_failures} restart{'' if config.max_failures == 1 else 's'}"
    return TrainingFailedError(
        f"training failed after {restarts}; rank {rank}: {type(error).__name__}: {summary}"
    )


def _first_cause(failures: Mapping[int, BaseException]) -> BaseException:
    return failures[_first_rank(failures)]


def _first_rank(failures: Mapping[int, BaseException]) -> int:
    """The rank that failed first, as far as can be told: the others mostly report that they lost it."""
    lost_a_peer = [
        rank for rank in failures if "peer" in str(failures[rank]) or "gloo" in str(failures[rank])
    ]
    return min(failures, key=lambda rank: (rank in lost_a_peer, rank))
