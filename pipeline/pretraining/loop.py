"""The loop of one pretraining stage: batches in; steps, validations and checkpoints out. Torch alone.

All randomness comes with the batches, which are pure functions of their step: a run that goes on from a checkpoint
takes the very steps that the run before it would have taken.
"""

import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ldznet.errors import UserError
from pipeline.pretraining.average import Average
from pipeline.pretraining.recipe import StageTraining
from pipeline.training.divergence import DivergenceError

logger = logging.getLogger(__name__)

STATE, PROGRESS = "state.safetensors", "progress.json"
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Batches(Protocol):
    """This rank's share of every batch, a pure function of the step."""

    def from_step(self, step: int) -> Iterator[dict[str, Tensor]]:
        """The objective's keyword arguments for step `step` (0 is the first) and all that follow, without end."""
        ...


class Checkpoints(Protocol):
    """Where checkpoint folders go."""

    def save(self, folder: Path, *, step: int) -> str:
        """Keep what lies in `folder`; returns where it is. Rank 0 calls it."""
        ...

    def latest(self) -> Path | None:
        """The newest checkpoint's folder, or None. Every rank calls it."""
        ...


class Observer(Protocol):
    """What is told how it goes: `pipeline.training.loop.Observer`. Only rank 0 has one."""

    def on_start(self, *, step: int, total: int) -> None: ...  # noqa: D102 - as in pipeline.training.loop

    def on_step(self, metrics: Mapping[str, float], *, step: int) -> None: ...  # noqa: D102

    def on_validation(self, metrics: Mapping[str, float], *, step: int, best: bool) -> None: ...  # noqa: D102

    def on_checkpoint(self, location: str, *, step: int, seconds: float) -> None: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True, slots=True)
class StageOutcome:
    """How a stage ended. Not `finished`: time was up, and a checkpoint was written."""

    step: int
    finished: bool
    metrics: dict[str, float]  # of the last validation


class StageLoop:
    """Trains one objective. Every rank runs the same calls.

    Args:
        objective: a module whose call with a batch gives named loss terms, `loss` among them.
        batches: where batches come from.
        config: optimiser, schedule, what happens when.
        device: where the objective lies.
        identity: digest of all that must be equal for a checkpoint to be gone on from.
        validate: measures the objective with its averaged weights.
        observer: told of everything, on rank 0.
        checkpoints: where checkpoints go and come from.
    """

    def __init__(
        self,
        *,
        objective: nn.Module,
        batches: Batches,
        config: StageTraining,
        device: torch.device,
        identity: str,
        checkpoints: Checkpoints,
        observer: Observer | None = None,
        validate: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        self._objective, self._batches, self._config, self._device = objective, batches, config, device
        self._identity, self._checkpoints, self._observer, self._validate = (
            identity,
            checkpoints,
            observer,
            validate,
        )
        self._call = _call(objective, config)
        self._trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        self._optimiser = torch.optim.AdamW(
            self._trained.values(),
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.average = Average(objective, decay=config.ema_decay)
        self._step = 0
        self._metrics: dict[str, float] = {}

    def run(self, *, until: float | None = None) -> StageOutcome:
        """Train to the end, from the latest checkpoint if there is one.

        Args:
            until: a `time.monotonic()` after which a checkpoint is written and the loop left.

        Raises:
            DivergenceError: loss or gradient became NaN or infinite; the last checkpoint is from before.
            UserError: the latest checkpoint was made by another configuration.
        """
        self._resume()
        config, meter = self._config, _Meter()
        if self._observer:
            self._observer.on_start(step=self._step, total=config.steps)
        saved = self._step
        with closing(_Ahead(self._batches.from_step(self._step))) as batches:
            while self._step < config.steps and not _time_is_up(until, self._device):
                meter.begin()
                batch = {
                    name: tensor.to(self._device, non_blocking=True)
                    for name, tensor in batches.take().items()
                }
                meter.loaded()
                meter.add(self._take_step(batch))
                if self._due(config.log_every):
                    self._log(meter)
                if self._due(config.validate_every):
                    self._validation()
                if self._due(config.checkpoint_every):
                    self._save(meter)
                    saved = self._step
        finished = self._step >= config.steps
        if finished and not self._due(config.validate_every):
            self._validation()
        if saved != self._step:
            self._save(meter)
        return StageOutcome(step=self._step, finished=finished, metrics=self._metrics)

    def averaged(self) -> Any:
        """A context in which the objective has its averaged weights."""
        return self.average.swapped()

    def _take_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config = self._config
        rate = learning_rate(config, self._step)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._objective.train()
        self._optimiser.zero_grad()
        with _autocast(config, self._device):
            terms = self._call(**batch)
        terms["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self._trained.values(), config.clip_norm)
        self._optimiser.step()
        self._step += 1
        self.average.update(self._step)
        return {name: term.detach() for name, term in terms.items()} | {"grad_norm": norm.detach()}

    def _log(self, meter: "_Meter") -> None:
        figures = meter.read(batch_size=self._config.batch_size) | {
            "lr": learning_rate(self._config, self._step - 1)
        }
        self._check(figures)
        if self._observer:
            self._observer.on_step(figures, step=self._step)

    def _check(self, figures: Mapping[str, float]) -> None:
        if not math.isfinite(figures["loss"] + figures["grad_norm"]):
            what = f"loss or gradient is not finite at or before step {self._step}: lower lr"
            raise DivergenceError(what, step=self._step, keys=(), weights_changed=True)

    def _due(self, every: int) -> bool:
        return self._step % every == 0

    def _validation(self) -> None:
        if self._validate is None:
            return
        self._objective.eval()
        with self.averaged(), torch.no_grad(), _autocast(self._config, self._device):
            self._metrics = dict(self._validate())
        if self._observer:
            self._observer.on_validation(self._metrics, step=self._step, best=False)

    def _save(self, meter: "_Meter") -> None:
        self._check(meter.means())  # what went wrong since the last report must not be kept
        if _rank() == 0:
            self._write()
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.barrier()

    def _write(self) -> None:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="pretrain-") as scratch:
            folder = Path(scratch) / "checkpoint"
            folder.mkdir()
            save_file(self._state(), folder / STATE)
            progress = {"step": self._step, "identity": self._identity, "metrics": self._metrics}
            (folder / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
            location = self._checkpoints.save(folder, step=self._step)
        if self._observer:
            self._observer.on_checkpoint(location, step=self._step, seconds=time.perf_counter() - began)

    def _state(self) -> dict[str, Tensor]:
        state = {f"weights/{name}": tensor for name, tensor in self._objective.state_dict().items()}
        state |= {f"average/{name}": tensor for name, tensor in self.average.weights.items()}
        for name, parameter in self._trained.items():
            kept = self._optimiser.state[parameter]
            state |= {f"{moment}/{name}": kept[moment] for moment in _MOMENTS}
        return {name: tensor.detach().to("cpu").contiguous() for name, tensor in state.items()}

    def _resume(self) -> None:
        folder = self._checkpoints.latest()
        if folder is None:
            return
        progress = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        if progress["identity"] != self._identity:
            raise UserError(
                f"the checkpoint of step {progress['step']} was made by another configuration: "
                "give the run another name, or set the recipe back"
            )
        with safe_open(folder / STATE, "pt") as state:
            self._load(state)
        self._step, self._metrics = progress["step"], progress["metrics"]
        for kept in self._optimiser.state.values():
            kept["step"] = torch.tensor(float(self._step), device=self._device)
        logger.info("resumed after step %d", self._step)

    @torch.no_grad()
    def _load(self, state: Any) -> None:
        for name, tensor in self._objective.state_dict().items():
            tensor.copy_(state.get_tensor(f"weights/{name}"))
        self.average.load({name: state.get_tensor(f"average/{name}") for name in self.average.weights})
        for name, parameter in self._trained.items():
            self._optimiser.state[parameter] = {
                moment: torch.empty_like(parameter).copy_(state.get_tensor(f"{moment}/{name}"))
                for moment in _MOMENTS
            }


class _Ahead:
    """Makes the next batch in a thread while the device computes on this one."""

    def __init__(self, batches: Iterator[dict[str, Tensor]]) -> None:
        self._batches = batches
        self._thread = ThreadPoolExecutor(1)
        self._waiting = self._thread.submit(next, batches)

    def take(self) -> dict[str, Tensor]:
        batch = self._waiting.result()
        self._waiting = self._thread.submit(next, self._batches)
        return batch

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        if isinstance(self._batches, Generator):
            self._batches.close()


class _Meter:
    """Means of the loss terms, speed and data wait since the last report, without waiting for the device."""

    def __init__(self) -> None:
        self._terms: list[dict[str, Tensor]] = []
        self._seconds = self._waiting = 0.0

    def begin(self) -> None:
        self._began = time.perf_counter()

    def loaded(self) -> None:
        self._waiting += time.perf_counter() - self._began

    def add(self, terms: dict[str, Tensor]) -> None:
        self._terms.append(terms)
        self._seconds += time.perf_counter() - self._began

    def means(self) -> dict[str, float]:
        names = self._terms[0] if self._terms else ("loss", "grad_norm")
        return {
            name: float(torch.stack([each[name] for each in self._terms]).mean()) if self._terms else 0.0
            for name in names
        }

    def read(self, *, batch_size: int) -> dict[str, float]:
        """Read and start anew."""
        began, count = time.perf_counter(), len(self._terms)
        means = self.means()
        seconds = self._seconds + time.perf_counter() - began  # what a GPU still had to do
        figures = means | {
            "samples_per_second": count * batch_size / seconds,
            "data_wait_share": self._waiting / seconds,
        }
        self._terms, self._seconds, self._waiting = [], 0.0, 0.0
        return figures


def learning_rate(config: StageTraining, step: int) -> float:
    """The rate of step `step` (0 is the first): linear warm-up, then constant, or a cosine down to 0."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = min(1.0, (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


def _call(objective: nn.Module, config: StageTraining) -> Callable[..., dict[str, Tensor]]:
    if config.channels_last:
        objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has it, its stubs do not
    called: Any = torch.compile(objective) if config.compiled else objective
    if dist.is_initialized() and dist.get_world_size() > 1:
        called = DistributedDataParallel(called)
    return called


def _autocast(config: StageTraining, device: torch.device) -> Any:
    return torch.autocast(device.type, torch.bfloat16) if config.precision == "bf16" else nullcontext()


def _time_is_up(until: float | None, device: torch.device) -> bool:
    """Rank 0's clock, for all."""
    if until is None:
        return False
    up = time.monotonic() >= until
    if dist.is_initialized() and dist.get_world_size() > 1:
        told = torch.tensor([float(up)], device=device)
        dist.broadcast(told, src=0)
        up = bool(told.item())
    return up


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
