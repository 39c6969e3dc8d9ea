"""The training loop: batches in; steps, validations, checkpoints and the best model out. Knows no Ray, no MLflow."""

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ldznet.errors import UserError
from pipeline.loading.batch import Batch
from pipeline.loading.sample_order import Position
from pipeline.training import preemption, ranks
from pipeline.training.checkpoint import Progress, read_checkpoint, take_snapshot
from pipeline.training.checkpoint_store import CheckpointStore
from pipeline.training.checkpoint_upload import CheckpointUpload, Stored
from pipeline.training.config import TrainConfig
from pipeline.training.divergence import DivergenceError, ExplodingLossError
from pipeline.training.ema import EMA, model_state
from pipeline.training.engine import Engine, StepReport
from pipeline.training.schedule import learning_rate

logger = logging.getLogger(__name__)

Validate = Callable[
    [Engine], Mapping[str, float]
]  # sharded over ranks, merged; runs with the averaged weights
KeepModel = Callable[
    [dict[str, Tensor], int, Mapping[str, float]], None
]  # whole state dict, step, metrics; rank 0


class BatchSource(Protocol):
    """A loader: this rank's share of every global batch, in an order fixed by the epoch."""

    def __len__(self) -> int:
        """Global batches in an epoch, equal on every rank."""
        ...

    def epoch(self, position: Position) -> Iterator[Batch]:
        """The rest of an epoch from a position."""
        ...


class Observer(Protocol):
    """What is told how the training goes. Called on rank 0 only; `step` counts from 1."""

    def on_start(self, *, step: int, total: int) -> None:
        """The loop begins after `step` steps (more than 0 when resumed) of `total`."""
        ...

    def on_step(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Every `log_every` steps.

        `metrics` has loss (mean since the last call), samples_per_second, data_wait_share, lr, grad_norm, epoch.
        """
        ...

    def on_validation(self, metrics: Mapping[str, float], *, step: int, best: bool) -> None:
        """After a validation."""
        ...

    def on_checkpoint(self, location: str, *, step: int, seconds: float) -> None:
        """After a checkpoint of step `step` became visible in its store; training waited `seconds` for it."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainOutcome:
    """How a training ended."""

    steps: int
    metrics: dict[str, float]  # of the last validation
    best: float | None
    best_step: int | None
    stopped_early: bool


class _Meter:
    """Loss, speed and data wait since the last report. Validation and checkpoints are outside its clock."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._losses: list[float] = []
        self._seconds = self._waiting = 0.0

    def add(self, loss: float, *, seconds: float, waiting: float) -> None:
        self._losses.append(loss)
        self._seconds += seconds
        self._waiting += waiting

    def read(self, *, batch_size: int) -> dict[str, float]:
        steps = len(self._losses)
        return {
            "loss": math.fsum(self._losses) / steps,
            "samples_per_second": steps * batch_size / self._seconds,
            "data_wait_share": self._waiting / self._seconds,
        }


class TrainLoop:
    """One training on one rank; every rank runs the same calls."""

    def __init__(
        self,
        *,
        engine: Engine,
        ema: EMA | None,
        source: BatchSource,
        config: TrainConfig,
        validate: Validate | None = None,
        observer: Observer | None = None,
        checkpoints: CheckpointStore | None = None,
        keep_model: KeepModel | None = None,
        identity: str = "",
    ) -> None:
        self._engine, self._ema, self._source, self._config = engine, ema, source, config
        self._validate, self._checkpoints, self._keep_model = validate, checkpoints, keep_model
        self._upload = None if checkpoints is None else CheckpointUpload(checkpoints)
        self._observer = observer if ranks.rank() == 0 else None
        self._identity = f"{config.identity()}-{identity}"
        self._total = config.total_steps(len(source))
        if config.warmup_steps >= self._total > 1:
            raise UserError(
                f"train.warmup_steps={config.warmup_steps} leaves nothing of the {self._total} steps that "
                f"train.epochs={config.epochs} makes: lower it"
            )
        self._position = Position()
        self._progress = Progress()
        self._meter = _Meter()
        self._saved: int | None = None  # step of the last checkpoint
        self._newest: str | None = None  # where the last visible one is
        self._stalled = 0.0  # seconds that training waited for the checkpoint on its way

    def run(self) -> TrainOutcome:
        """Train to the end, from the latest checkpoint if there is one."""
        self._resume()
        if self._observer:
            self._observer.on_start(step=self._progress.step, total=self._total)
        try:
            with closing(self._batches()) as batches:  # the loader's threads end with it
                while self._progress.step < self._total and not self._progress.stopped:
                    self._take_step(batches)
                    if self._due(self._config.validate_every):
                        self._validation()
                    if self._due(self._config.checkpoint_every):
                        self._checkpoint()
                    self._attend()
            return self._finish()
        except DivergenceError as error:
            self._stop(error)
            raise

    def _resume(self) -> None:
        if self._checkpoints is None:
            return
        with self._checkpoints.latest() as folder:
            if folder is None:
                return
            self._progress = read_checkpoint(
                folder, engine=self._engine, ema=self._ema, identity=self._identity
            )
            self._newest = self._checkpoints.location(folder.name)
        self._position = Position(**self._progress.position)
        self._saved = self._progress.step
        # The patience may be another one than before.
        self._progress = self._progress.model_copy(update={"stopped": self._impatient(self._progress.worse)})
        logger.info("resumed after step %d", self._progress.step)

    def _batches(self) -> Generator[Batch, None, None]:
        """Batches without end, epoch after epoch; `self._position` is that of the next one to be trained on."""
        if not len(self._source):
            raise UserError(
                f"too few samples for a batch of {self._config.batch_size}: "
                "lower train.batch_size or precompute more"
            )
        while True:
            epoch = self._position.epoch
            for batch in self._source.epoch(self._position):
                self._position = Position(epoch=epoch, batch=self._position.batch + 1)
                yield batch
            self._position = Position(epoch=epoch + 1)

    def _take_step(self, batches: Iterator[Batch]) -> None:
        config, step = self._config, self._progress.step
        began = time.perf_counter()
        batch = next(batches)
        waiting = time.perf_counter() - began
        report = self._engine.train_step(batch, lr=learning_rate(config, step=step, total=self._total))
        if self._ema is not None:
            self._ema.update()
        self._progress = self._progress.model_copy(
            update={"step": step + 1, "position": asdict(self._position)}
        )
        self._meter.add(report.loss, seconds=time.perf_counter() - began, waiting=waiting)
        if self._due(config.log_every) or step + 1 == self._total:
            self._log(report)

    def _log(self, report: StepReport) -> None:
        if self._observer:
            epoch = self._position.epoch + self._position.batch / len(self._source)
            figures = {"lr": report.lr, "grad_norm": report.grad_norm, "epoch": epoch}
            measured = self._meter.read(batch_size=self._config.batch_size)
            self._observer.on_step(measured | figures, step=self._progress.step)
        self._meter.clear()

    def _due(self, every: int | None) -> bool:
        return every is not None and self._progress.step % every == 0

    def _validation(self) -> None:
        """Validate with the averaged weights, keep the model if it is the best so far, count towards an early stop."""
        if self._validate is None:
            return
        with self._ema.swapped() if self._ema is not None else nullcontext():
            metrics = ranks.agree(dict(self._validate(self._engine)))
        step, value = self._progress.step, _figure(metrics, self._config.best_metric)
        best = self._is_better(value)
        worse = 0 if best else self._progress.worse + 1
        update: dict[str, Any] = {"metrics": metrics, "worse": worse, "validated": step}
        update["stopped"] = self._impatient(worse)
        if best:
            update |= {"best": value, "best_step": step}
            self._keep(metrics)
        self._progress = self._progress.model_copy(update=update)
        if self._observer:
            self._observer.on_validation(metrics, step=step, best=best)

    def _impatient(self, worse: int) -> bool:
        """Whether so many validations in a row without a better one are enough."""
        return self._config.patience is not None and worse >= self._config.patience

    def _is_better(self, value: float) -> bool:
        best = self._progress.best
        if best is None or math.isnan(value):
            return not math.isnan(value)
        return value > best if self._config.best_is == "highest" else value < best

    def _keep(self, metrics: Mapping[str, float]) -> None:
        if self._keep_model is None:
            return
        state = model_state(self._engine, self._ema)
        if ranks.rank() == 0:
            self._keep_model(state, self._progress.step, metrics)
        ranks.wait_for_all()

    def _checkpoint(self) -> None:
        """Copy the state to the host and send it on its way, once the checkpoint before is in its store."""
        if self._upload is None:
            return
        began = time.perf_counter()
        self._report(self._upload.settle())
        snapshot = take_snapshot(
            engine=self._engine, ema=self._ema, progress=self._progress, identity=self._identity
        )
        self._upload.start(snapshot)
        self._saved, self._stalled = self._progress.step, time.perf_counter() - began

    def _attend(self) -> None:
        """After a step: what ranks have to tell each other of checkpoints and notices to leave."""
        upload = self._upload
        told = (upload.busy, upload.failed) if upload else (False, False)
        noticed, busy, failed = ranks.count(preemption.noticed(), *told)
        if upload:
            self._report(upload.advance(busy=busy, failed=failed))
        if noticed:
            self._checkpoint_now()
            raise preemption.Preempted(self._progress.step, self._newest)

    def _checkpoint_now(self) -> None:
        """A checkpoint of this step, waited for."""
        if self._upload is None:
            return
        if self._saved != self._progress.step:
            self._checkpoint()
        began = time.perf_counter()
        stored = self._upload.settle()
        self._stalled += time.perf_counter() - began
        self._report(stored)

    def _report(self, stored: Stored | None) -> None:
        if stored is None:
            return
        self._newest = stored.location
        if self._observer:
            self._observer.on_checkpoint(stored.location, step=stored.step, seconds=self._stalled)

    def _stop(self, error: DivergenceError) -> None:
        """Keep the state from before the step where its weights are good, and tell which checkpoint is from before."""
        good = not error.weights_changed and not isinstance(error, ExplodingLossError) and self._finite()
        if good:
            self._checkpoint_now()
        elif self._upload is not None:
            self._report(self._upload.settle())
        if self._newest is None:
            error.checkpoint = "no checkpoint is from before it: set or lower train.checkpoint_every"
        elif good:
            error.checkpoint = f"the state before it is in {self._newest}"
        else:
            error.checkpoint = f"the last checkpoint from before it is {self._newest}"

    def _finite(self) -> bool:
        """Whether all weights of all ranks are."""
        own = self._engine.local_parameters().values()
        (broken,) = ranks.count(not all(bool(torch.isfinite(part).all()) for part in own))
        return not broken

    def _finish(self) -> TrainOutcome:
        if self._validate is None:
            self._keep({})
        elif self._progress.validated != self._progress.step:
            self._validation()
        self._checkpoint_now()
        ranks.wait_for_all()
        progress = self._progress
        return TrainOutcome(
            steps=progress.step,
            metrics=progress.metrics,
            best=progress.best,
            best_step=progress.best_step,
            stopped_early=progress.stopped and progress.step < self._total,
        )


def _figure(metrics: Mapping[str, float], name: str) -> float:
    if name not in metrics:
        raise UserError(
            f"best_metric={name!r} is not measured in validation: choose one of {', '.join(sorted(metrics))}"
        )
    return metrics[name]


def train(
    *,
    engine: Engine,
    ema: EMA | None,
    source: BatchSource,
    config: TrainConfig,
    validate: Validate | None = None,
    observer: Observer | None = None,
    checkpoints: CheckpointStore | None = None,
    keep_model: KeepModel | None = None,
    identity: str = "",
) -> TrainOutcome:
    """Train to the end, going on from the latest checkpoint. Every rank calls it with equal arguments.

    Args:
        engine: Network, optimiser and ranks.
        ema: The average that validation and the kept model use, or None.
        source: The loader of this rank.
        config: Steps, schedule, what is validated and kept when.
        validate: Measures the network; every rank runs it on its shard and returns the merged figures.
        observer: Told of steps, validations and checkpoints, on rank 0.
        checkpoints: Where checkpoints go and come from; None keeps none.
        keep_model: Given the whole state dict of the best model so far, on rank 0; without `validate`, the last.
        identity: A digest of what else must be equal for a checkpoint to be gone on from: data, network.

    Raises:
        DivergenceError: Loss or gradients are not finite, or the loss is above its limit; tells samples and checkpoint.
        Preempted: Left on a notice (see `preemption`), with a checkpoint; call again to go on.
        UserError: A checkpoint of another configuration, a metric that is not measured, no full batch.
    """
    loop = TrainLoop(
        engine=engine,
        ema=ema,
        source=source,
        config=config,
        validate=validate,
        observer=observer,
        checkpoints=checkpoints,
        keep_model=keep_model,
        identity=identity,
    )
    with preemption.listening():
        return loop.run()
