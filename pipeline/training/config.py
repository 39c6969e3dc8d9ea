"""How a training goes: engine, batch, optimiser, schedule, and what is kept."""

import hashlib
import json
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ldznet.config import Config
from pipeline.training.cluster_config import ClusterConfig
from pipeline.worker_count import WorkerCount, WorkersConfig, most_workers

AUGMENTATIONS = ("flip",)
PUBLISHED_LR_PER_SAMPLE = 5e-7  # lr = this x global batch size (training as published: 1.6e-5 for 32)

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]

# What may change between a checkpoint and the run that goes on from it.
_FREE_TO_CHANGE = frozenset(
    {
        "engine", "zero_stage", "offload", "workers", "threads", "micro_batch", "steps", "epochs", "validate_every",
        "checkpoint_every", "keep_checkpoints", "log_every", "max_failures", "patience", "cluster",
        "stop_above_loss",
        "features", "online_draws",  # what matters of them is `draws`
    }
)  # fmt: skip


class TrainConfig(Config):
    """One training. `batch_size` is global and kept whatever the number of ranks."""

    engine: Literal["deepspeed", "ddp"] = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] | None = Field(
        default=None, description="DeepSpeed's ZeRO stage; left out, 2 under `deepspeed`"
    )
    offload: bool = Field(default=False, description="optimiser state and its step on the CPU (ZeRO 1-3)")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="bf16: autocast over fp32 weights, so that small updates and the EMA are exact",
    )
    workers: WorkerCount = Field(
        default=1, description="ranks: one a GPU, or processes on the CPU; as a range they follow the cluster"
    )
    threads: Positive = Field(default=1, description="CPU threads a rank")

    features: Literal["cached", "online"] = Field(
        default="cached", description="read from the cache, or computed from the photos at each step"
    )
    online_draws: Literal["fresh", "cycle"] = Field(
        default="fresh",
        description="fresh: new ones each epoch; cycle: the cache's, by epoch mod their number",
    )
    augment: tuple[str, ...] = Field(default=(), description="of photos, before they are encoded: flip")

    steps: Positive | None = Field(default=None, description="optimiser steps in all; wins over `epochs`")
    epochs: Annotated[float, Field(gt=0)] = Field(
        default=15, description="passes over the data, as published"
    )
    batch_size: Positive = Field(default=32, description="samples a step, over all ranks")
    micro_batch: Positive | None = Field(
        default=None, description="samples a rank takes at once; left out, its whole share of the batch"
    )

    lr: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="peak learning rate; left out, 5e-7 x batch_size as published"
    )
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    warmup_steps: Natural = 0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    ema: bool = Field(default=True, description="decay min(0.9999, (1+n)/(10+n)) after n updates")

    validate_every: Positive | None = Field(default=None, description="steps; left out, at the end only")
    checkpoint_every: Positive | None = Field(default=1000, description="steps; null: at the end only")
    keep_checkpoints: Positive = 2
    log_every: Positive = 1
    best_metric: Literal["miou", "iou_fg", "ap"] = "miou"
    best_is: Literal["highest", "lowest"] = "highest"
    patience: Positive | None = Field(
        default=None, description="stop after so many validations in a row without a better `best_metric`"
    )
    stop_above_loss: Annotated[float, Field(gt=0)] | None = Field(
        default=100.0,  # an untrained network's is below 1: only one that has lost its way comes here
        description="stop where the loss of a step is above it; NaN and infinity always stop",
    )
    seed: Natural = 0
    max_failures: Natural = Field(default=3, description="restarts after lost ranks before giving up")
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        _check_length(self)
        _check_source(self)
        _check_engine(self)
        _check_batch(self)
        return self

    @property
    def draws(self) -> Literal["fresh", "cycle"]:
        """Which draws an epoch sees: what a checkpoint asks of the run that goes on from it."""
        return self.online_draws if self.features == "online" else "cycle"

    @property
    def stage(self) -> int:
        """The ZeRO stage in force: 0 under DDP."""
        if self.engine == "ddp":
            return 0
        return 2 if self.zero_stage is None else self.zero_stage

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        return self.lr if self.lr is not None else PUBLISHED_LR_PER_SAMPLE * self.batch_size

    @property
    def max_workers(self) -> int:
        """Ranks at most."""
        return most_workers(self.workers)

    @property
    def rank_batch(self) -> int:
        """Samples that one rank takes in a step, with all ranks there."""
        return self.batch_size // self.max_workers

    @property
    def micro_batch_size(self) -> int:
        """Samples that one rank takes at once."""
        return self.micro_batch if self.micro_batch is not None else self.rank_batch

    @property
    def accumulation(self) -> int:
        """Micro batches that make a step on one rank."""
        return self.rank_batch // self.micro_batch_size

    def total_steps(self, batches_per_epoch: int) -> int:
        """Optimiser steps in all, given the batches in an epoch."""
        if self.steps is not None:
            return self.steps
        return max(1, round(self.epochs * batches_per_epoch))

    def fitting_ranks(self, room: int) -> int:
        """The most ranks, where there is room for so many, among which the batch divides evenly; 0: none."""
        micro = self.micro_batch or 1
        if isinstance(self.workers, WorkersConfig):
            micro = self.micro_batch_size  # what the most ranks take at once is what a GPU holds
        counts = range(min(room, self.max_workers), 0, -1)
        return next((ranks for ranks in counts if self.batch_size % (ranks * micro) == 0), 0)

    def on_ranks(self, ranks: int) -> Self:
        """The same training on so many ranks. The batch is kept; fewer of a range take more micro batches each."""
        micro = self.micro_batch if isinstance(self.workers, int) else self.micro_batch_size
        return self.model_copy(update={"workers": ranks, "micro_batch": micro})

    def fitted_to_gpus(self, gpus: int) -> Self:
        """The same training with no more ranks than GPUs, where there are any. Left as it is where GPUs may join."""
        fixed = isinstance(self.workers, int) and self.cluster.device == "auto"
        if not fixed or not 0 < gpus < self.max_workers:
            return self
        return self.on_ranks(self.fitting_ranks(gpus))

    def identity(self) -> str:
        """Digest of what must not change between a checkpoint and the run that goes on from it."""
        fixed = self.model_dump(mode="json", exclude=set(_FREE_TO_CHANGE))
        fixed |= {"lr": self.peak_lr, "draws": self.draws}
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def _check_length(config: TrainConfig) -> None:
    if config.steps is not None and config.warmup_steps >= config.steps > 1:
        raise ValueError(f"warmup_steps={config.warmup_steps} leaves nothing of steps={config.steps}")
    if config.patience is not None and config.validate_every is None:
        raise ValueError("patience counts validations: set validate_every too")


def _check_source(config: TrainConfig) -> None:
    if config.augment and config.features == "cached":
        raise ValueError(
            f"augment={','.join(config.augment)} changes the photo, and so every feature made of it, which a cache "
            "holds for the photo as it was: set train.features=online, or sets.NAME.draws to cache more crops"
        )
    unknown = sorted(set(config.augment) - set(AUGMENTATIONS))
    if unknown:
        raise ValueError(f"augment knows {', '.join(AUGMENTATIONS)}, not {unknown[0]!r}")


def _check_engine(config: TrainConfig) -> None:
    if config.engine == "ddp" and config.zero_stage:
        raise ValueError(
            f"engine=ddp has no ZeRO: drop zero_stage={config.zero_stage} or use engine=deepspeed"
        )
    if config.offload and config.stage == 0:
        raise ValueError("offload needs engine=deepspeed with zero_stage 1, 2 or 3")


def _check_batch(config: TrainConfig) -> None:
    workers = config.max_workers
    if config.batch_size % workers:
        raise ValueError(f"batch_size={config.batch_size} does not divide among workers={workers}")
    if config.rank_batch % config.micro_batch_size:
        raise ValueError(
            f"batch_size={config.batch_size} is no multiple of workers x micro_batch = "
            f"{workers} x {config.micro_batch_size}"
        )
