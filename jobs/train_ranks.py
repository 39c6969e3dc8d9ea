"""Starts the ranks of a training by Ray Train, and again where they are lost."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from jobs.ray_preemption import leaving_on_notice, notice_callback
from jobs.reserved_room import give_room_back, room_callback
from jobs.training_storage import storage_filesystem
from ldznet.errors import DataFault, FinalError, UserError
from pipeline.freed_memory import keep_freed_memory
from pipeline.training.config import TrainConfig

logger = logging.getLogger(__name__)

Worker = Callable[[dict[str, Any]], Any]

_PLACEMENT_SECONDS = (
    30.0  # an attempt to place all ranks; then with what the cluster has by now, until patience ends
)
_CONTROLLER_FAILURES = -1  # of starts: as many as patience allows
# Ray Train looks at its workers this often; a report waits for the next look (Ray's own default: 2 s).
_POLL_SECONDS = "0.2"


class TrainingFailedError(RuntimeError):
    """The ranks failed more often than `max_failures`; the cause is chained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RanksResult:
    """What came of a training."""

    value: Any  # that rank 0 returned


def run_ranks(
    worker: Worker, *, config: dict[str, Any], train_config: TrainConfig, storage: str, name: str
) -> RanksResult:
    """Run `worker(config)` on every rank, in one torch process group, on the Ray that this process has joined.

    A rank that is lost brings all ranks back, up to `max_failures` times, and so does the loss of the actor that
    watches over them; ranks that left on a notice come back without being counted. What they then go on from is the
    worker's own matter (`CheckpointStore`): Ray keeps no checkpoints here.

    Args:
        worker: Picklable; runs on each rank with the process group open (gloo on the CPU, NCCL on GPUs).
        config: Handed to the worker; picklable.
        train_config: Ranks, threads, restarts.
        storage: `s3://bucket/prefix` (endpoint and credentials from `AWS_*` on every node), `file://` or a folder that
            every node sees.
        name: The run's folder in the storage.

    Raises:
        UserError: Raised by a rank, or the cluster cannot hold the ranks. Never retried, nor is a `DataFault` or a
            `FinalError`: a loss that diverges, a damaged sample or checkpoint.
        TrainingFailedError: Anything else that ended a rank once too often.
    """
    from ray.exceptions import RayActorError
    from ray.train import ControllerError, WorkerGroupError

    lasting, room = _cluster_outlives_us(), uuid4().hex
    for left in range(train_config.max_failures, -1, -1):
        trainer = _trainer(
            worker, config, train_config, storage=storage, name=name, room=room, lasting=lasting
        )
        try:
            with _environment(_ray_train_settings(lasting=lasting)), _ctrl_c_interrupts():
                return RanksResult(value=trainer.fit().return_value)
        except ControllerError as error:
            raise _controller_failure(error.controller_failure, train_config) from error
        except WorkerGroupError as error:
            cause = _first_cause(error.worker_failures)
            raise _worker_failure(error.worker_failures, train_config) from cause
        except RayActorError as error:  # the actor that watches over the ranks, which end with it
            lost = error
            give_room_back(room)
        logger.warning("Ray Train's controller was lost; starts left: %d", left)
    raise TrainingFailedError(f"training could not go on: {lost}") from lost


def _trainer(
    worker: Worker,
    config: dict[str, Any],
    train_config: TrainConfig,
    *,
    storage: str,
    name: str,
    room: str,
    lasting: bool,
) -> Any:
    from ray.train import FailureConfig, LoggingConfig, RunConfig
    from ray.train.torch import TorchConfig

    filesystem, path = storage_filesystem(storage)
    return _trainer_class(train_config, lasting=lasting)(
        _start_rank,
        train_loop_config={"worker": worker, "config": config, "threads": train_config.threads},
        torch_config=TorchConfig(timeout_s=round(train_config.cluster.collective_timeout_seconds)),
        scaling_config=scaling_config(train_config),
        run_config=RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(
                max_failures=train_config.max_failures, controller_failure_limit=_CONTROLLER_FAILURES
            ),
            logging_config=LoggingConfig(log_level="CRITICAL"),
            callbacks=[_stop_on_fatal(), notice_callback(), room_callback(room)],
            worker_runtime_env={"env_vars": _rank_environment(train_config)},
        ),
    )


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
    if not torch.cuda.is_available():
        keep_freed_memory()
    for name in (
        "ray.train",
        context.__file__,
    ):  # the second is a slip of Ray's: a logger named after its file
        logging.getLogger(name).setLevel(logging.ERROR)
    with leaving_on_notice():
        return config["worker"](config["config"])


def cluster_gpus() -> int:
    """GPUs of the Ray that this process has joined; `TrainConfig.fitted_to_gpus` takes the number."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def scaling_config(config: TrainConfig) -> Any:
    """Ray's words for how many ranks, each with what, and where."""
    from ray.train import ScalingConfig

    workers, use_gpu = config.workers, _use_gpus(config)
    return ScalingConfig(
        num_workers=workers if isinstance(workers, int) else (workers.min, workers.max),
        use_gpu=use_gpu,
        resources_per_worker={"CPU": config.threads} | ({"GPU": 1} if use_gpu else {}),
        placement_strategy=config.cluster.placement,
        accelerator_type=config.cluster.accelerator,
        elastic_resize_monitor_interval_s=config.cluster.resize_seconds,
    )


def _rank_environment(config: TrainConfig) -> dict[str, str]:
    no_gpu = {"CUDA_VISIBLE_DEVICES": ""} if config.cluster.device == "cpu" else {}
    return {"OMP_NUM_THREADS": str(config.threads), **no_gpu, **config.cluster.environment()}


def _use_gpus(config: TrainConfig) -> bool:
    if config.cluster.device != "auto":
        return config.cluster.device == "gpu"
    gpus, workers = cluster_gpus(), config.workers
    if isinstance(workers, int) and 0 < gpus < workers:
        fitting = config.fitted_to_gpus(gpus).workers
        raise UserError(
            f"train.workers={workers} ranks, but the cluster has {gpus} GPU{'' if gpus == 1 else 's'}: "
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
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(_PLACEMENT_SECONDS),
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it prints everything twice
    }
    return settings if lasting else settings | {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables for as long as a training lasts, where they are not set already."""
    ours = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def _trainer_class(config: TrainConfig, *, lasting: bool) -> Any:
    """Ray's TorchTrainer with our scaling; on a Ray that ends with us, without the actor that would clean up after us.

    That actor asks the state API each second, and complains each second where there is none. Private hooks: Ray is
    pinned.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    from jobs.rank_scaling import rank_scaling

    class Trainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [
                each for each in callbacks if lasting or not isinstance(each, PlacementGroupCleanerCallback)
            ]

        def _initialize_and_run_controller(self, **parts: Any) -> Any:
            policy = rank_scaling(self.scaling_config, config)
            return super()._initialize_and_run_controller(**(parts | {"scaling_policy": policy}))

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
    return isinstance(error, UserError | DataFault | FinalError)


def _controller_failure(error: BaseException, config: TrainConfig) -> BaseException:
    if _is_fatal(error):
        return error
    if type(error).__name__ == "InsufficientClusterResourcesError":
        return UserError(
            f"the Ray cluster, grown to its limit, has no room for {config.max_workers} ranks of {config.threads} CPU "
            "threads: lower train.workers or train.threads, or raise the cluster's limit"
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
