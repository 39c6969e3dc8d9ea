"""What takes an optimiser step: the interface of engines, and the accumulation that they share."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.loading.batch import Batch
from pipeline.training import ranks
from pipeline.training.config import TrainConfig
from pipeline.training.divergence import ExplodingLossError, NonFiniteLossError

Forward = Callable[[nn.Module, Batch], Tensor]  # network, batch -> logits B,1,H,W
Loss = Callable[
    [Tensor, Tensor, Tensor], Tensor
]  # logits, masks B,1,H,W, weight B -> mean over weighted samples


ENGINE_FILE = "engine.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """One optimiser step: loss over the global batch, learning rate, gradient norm before clipping."""

    loss: float
    lr: float
    grad_norm: float


class Engine(Protocol):
    """A network on this rank's device with its optimiser. Every method but `local_parameters` is collective."""

    @property
    def network(self) -> nn.Module:
        """The network itself; under ZeRO-3 its parameters are parts: run it by `predict`."""
        ...

    @property
    def step(self) -> int:
        """Optimiser steps taken."""
        ...

    def train_step(self, batch: Batch, *, lr: float) -> StepReport:
        """One optimiser step on this rank's share of the global batch.

        Raises a `DivergenceError` on every rank; it tells whether the weights have changed.
        """
        ...

    def predict(self, batch: Batch) -> Tensor:
        """Logits `B,1,H,W` in fp32, in evaluation mode. Every rank must call it equally often."""
        ...

    def local_parameters(self) -> dict[str, Tensor]:
        """This rank's part of each trained parameter by name, as live storage: whole, or flat under ZeRO-3."""
        ...

    def gather(self, name: str, local: Tensor) -> Tensor:
        """The whole tensor from all ranks' parts of something shaped like parameter `name`."""
        ...

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part of a whole tensor shaped like parameter `name`."""
        ...

    def whole_state(self) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """The network's state dict, tensor by tensor; calling one gathers it, which every rank must do in order."""
        ...

    def release(self) -> None:
        """Drop copies gathered from parts; call before and after `local_parameters` are written to."""
        ...

    def snapshot(self) -> dict[str, Tensor]:
        """This rank's turn of whole weights and optimiser state, copied to the host: what `load` reads."""
        ...

    def load(self, folder: Path) -> None:
        """Read the snapshots of any number of ranks, at any ZeRO stage, from `rank-*/engine.safetensors`."""
        ...

    def close(self) -> None:
        """Wait for all ranks and let go of hooks and buffers."""
        ...


class ForwardPass(nn.Module):
    """Network and forward call as one module, so that DDP's and ZeRO's hooks see the call.

    Autocast is inside, where it is the same for every engine.
    """

    def __init__(self, network: nn.Module, forward: Forward, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self._forward = forward
        self._dtype = dtype

    def forward(self, batch: Batch) -> Tensor:
        """Logits `B,1,H,W` in fp32."""
        device_type = batch.masks.device.type
        with torch.autocast(device_type, self._dtype, enabled=self._dtype != torch.float32):
            return self._forward(self.network, batch).float()


def forward_pass(network: nn.Module, forward: Forward, config: TrainConfig) -> ForwardPass:
    """The network on this rank's device, equal on all ranks, ready for an engine."""
    network.to(ranks.rank_device())
    ranks.share_weights(network)
    return ForwardPass(
        network, forward, dtype=torch.bfloat16 if config.precision == "bf16" else torch.float32
    )


def adamw(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """The optimiser of every engine: one implementation, so that engines differ in rounding at most."""
    return torch.optim.AdamW(
        parameters, lr=config.peak_lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )


def split_batch(batch: Batch, size: int) -> Iterator[Batch]:
    """Cut a batch into micro batches of `size` samples."""
    for start in range(0, len(batch.keys), size):
        cut = slice(start, start + size)
        parts: dict[str, Any] = {}
        for field in fields(batch):
            value = getattr(batch, field.name)
            if isinstance(value, dict):
                parts[field.name] = {number: tensor[cut] for number, tensor in value.items()}
            else:
                parts[field.name] = None if value is None else value[cut]
        yield Batch(**parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Accumulation:
    """The micro batches of one step: forward, loss and backward, weighted so that each sample counts once."""

    module: Callable[[Batch], Tensor]
    loss: Loss
    micro_batch: int
    limit: float | None = None  # a loss above it stops the training

    def run(
        self,
        batch: Batch,
        *,
        step: int,
        backward: Callable[[Tensor], None],
        around: Callable[[bool], AbstractContextManager[Any]],
        between: Callable[[], None],
    ) -> float:
        """Run forward and backward for this rank's share; the loss over the global batch.

        Engines average gradients over ranks, so a micro batch's mean is scaled by ranks x its share of the global
        weight.

        Args:
            batch: This rank's share of the global batch.
            step: Number of the step, for the error.
            backward: Runs the backward pass of a scaled loss.
            around: Context of one micro batch, told whether it is the last.
            between: Called after every micro batch but the last.
        """
        device, ranks_in_all = ranks.rank_device(), ranks.world_size()
        micros = list(split_batch(batch, self.micro_batch))
        weight = ranks.add_over_ranks(batch.weight.sum().to(device)).clamp(min=1)
        losses: list[Tensor] = []
        for index, waiting in enumerate(micros):
            micro, last = waiting.to(device, torch.float32), index == len(micros) - 1
            with around(last):
                loss = self.loss(self.module(micro), micro.masks, micro.weight) * (
                    micro.weight.sum() / weight
                )
                backward(loss * ranks_in_all)
            losses.append(loss.detach())
            if not last:
                between()
        total = float(ranks.add_over_ranks(torch.stack(losses).sum()))
        if not math.isfinite(total):
            raise NonFiniteLossError(step=step, keys=self._offending(batch))
        if self.limit is not None and total > self.limit:
            keys = self._offending(batch, limit=self.limit)
            raise ExplodingLossError(step=step, keys=keys, loss=total, limit=self.limit)
        return total

    @torch.no_grad()
    def _offending(self, batch: Batch, *, limit: float = math.inf) -> tuple[str, ...]:
        """The samples of all ranks whose own loss is not finite or above the limit; all samples where none is."""
        own: list[str] = []
        for single in split_batch(batch, 1):
            sample = single.to(ranks.rank_device(), torch.float32)
            loss = float(self.loss(self.module(sample), sample.masks, torch.ones_like(sample.weight)))
            if bool(single.weight) and not loss <= limit:  # NaN is not
                own.extend(single.keys)
        found = tuple(key for keys in ranks.collect(own) for key in keys)
        return found or all_keys(batch)


def all_keys(batch: Batch) -> tuple[str, ...]:
    """The samples of the global batch, rank by rank, padding left out."""
    own = [key for key, weight in zip(batch.keys, batch.weight.tolist(), strict=True) if weight]
    return tuple(key for keys in ranks.collect(own) for key in keys)


def build_engine(network: nn.Module, *, forward: Forward, loss: Loss, config: TrainConfig) -> Engine:
    """The engine that the configuration names. The process group must exist."""
    if config.engine == "ddp":
        from pipeline.training.ddp_engine import DDPEngine

        return DDPEngine(network, forward=forward, loss=loss, config=config)
    from pipeline.training.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(network, forward=forward, loss=loss, config=config)
