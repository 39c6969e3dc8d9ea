"""How a training goes: engine, batch, optimiser, schedule, and what is kept."""

import hashlib
import json
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ldznet.config import Config

PUBLISHED_LR_PER_SAMPLE = 5e-7  # lr = this x global batch size (training as published: 1.6e-5 for 32)

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]

# What may change between a checkpoint and the run that goes on from it.
_FREE_TO_CHANGE = frozenset(
    {
        "engine", "zero_stage", "offload", "workers", "threads", "micro_batch", "steps", "epochs", "validate_every",
        "checkpoint_every", "keep_checkpoints", "log_every", "max_failures", "patience",
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
    workers: Positive = Field(default=1, description="ranks: one a GPU, or processes on the CPU")
    threads: Positive = Field(default=1, description="CPU threads a rank")

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
    checkpoint_every: Positive | None = Field(default=None, description="steps; left out, at the end only")
    keep_checkpoints: Positive = 2
    log_every: Positive = 1
    best_metric: str = "miou"
    best_is: Literal["highest", "lowest"] = "highest"
    patience: Positive | None = Field(
        default=None, description="stop after so many validations in a row without a better `best_metric`"
    )
    seed: Natural = 0
    max_failures: Natural = Field(default=3, description="restarts after lost ranks before giving up")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        _check_length(self)
        _check_engine(self)
        _check_batch(self)
        return self

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
    def rank_batch(self) -> int:
        """Samples that one rank takes in a step."""
        return self.batch_size // self.workers

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

    def fitted_to_gpus(self, gpus: int) -> Self:
        """The same training with no more ranks than GPUs, where there are any: the batch is kept."""
        if not 0 < gpus < self.workers:
            return self
        micro = self.micro_batch or 1
        workers = next(ranks for ranks in range(gpus, 0, -1) if self.batch_size % (ranks * micro) == 0)
        return self.model_copy(update={"workers": workers})

    def identity(self) -> str:
        """Digest of what must not change between a checkpoint and the run that goes on from it."""
        fixed = self.model_dump(mode="json", exclude=set(_FREE_TO_CHANGE)) | {"lr": self.peak_lr}
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def _check_length(config: TrainConfig) -> None:
    if config.steps is not None and config.warmup_steps >= config.steps > 1:
        raise ValueError(f"warmup_steps={config.warmup_steps} leaves nothing of steps={config.steps}")
    if config.patience is not None and config.validate_every is None:
        raise ValueError("patience counts validations: set validate_every too")


def _check_engine(config: TrainConfig) -> None:
    if config.engine == "ddp" and config.zero_stage:
        raise ValueError(
            f"engine=ddp has no ZeRO: drop zero_stage={config.zero_stage} or use engine=deepspeed"
        )
    if config.offload and config.stage == 0:
        raise ValueError("offload needs engine=deepspeed with zero_stage 1, 2 or 3")


def _check_batch(config: TrainConfig) -> None:
    if config.batch_size % config.workers:
        raise ValueError(f"batch_size={config.batch_size} does not divide among workers={config.workers}")
    if config.rank_batch % config.micro_batch_size:
        raise ValueError(
            f"batch_size={config.batch_size} is no multiple of workers x micro_batch = "
            f"{config.workers} x {config.micro_batch_size}"
        )
