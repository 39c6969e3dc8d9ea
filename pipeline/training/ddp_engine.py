"""Plain torch DistributedDataParallel: the yardstick for DeepSpeed, and enough for networks that fit one device."""

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.loading.batch import Batch
from pipeline.training import ranks
from pipeline.training.config import TrainConfig
from pipeline.training.divergence import NonFiniteGradientError
from pipeline.training.engine import (
    ENGINE_FILE,
    Accumulation,
    Forward,
    Loss,
    StepReport,
    adamw,
    all_keys,
    forward_pass,
)
from pipeline.training.named_tensors import open_named, optimiser_step, own_turn

MOMENTS = ("exp_avg", "exp_avg_sq")


class DDPEngine:
    """Every rank holds the whole network and the whole optimiser state."""

    def __init__(self, network: nn.Module, *, forward: Forward, loss: Loss, config: TrainConfig) -> None:
        self._config = config
        self._pass = forward_pass(network, forward, config)
        self._ddp = DistributedDataParallel(self._pass, gradient_as_bucket_view=True)
        self._trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._optimiser = adamw(list(self._trained.values()), config)
        self._accumulation = Accumulation(
            module=self._ddp, loss=loss, micro_batch=config.micro_batch_size, limit=config.stop_above_loss
        )
        self._step = 0

    @property
    def network(self) -> nn.Module:
        """The network itself."""
        return self._pass.network

    @property
    def step(self) -> int:
        """Optimiser steps taken."""
        return self._step

    def train_step(self, batch: Batch, *, lr: float) -> StepReport:
        """One optimiser step on this rank's share of the global batch."""
        self._pass.train()
        self._optimiser.zero_grad()
        loss = self._accumulation.run(
            batch, step=self._step + 1, backward=torch.Tensor.backward, around=self._around, between=_nothing
        )
        for group in self._optimiser.param_groups:
            group["lr"] = lr
        norm = clip_gradients(self._trained.values(), self._config)
        if not math.isfinite(norm):
            raise NonFiniteGradientError(step=self._step + 1, keys=all_keys(batch), weights_changed=False)
        self._optimiser.step()
        self._step += 1
        return StepReport(loss=loss, lr=lr, grad_norm=norm)

    def _around(self, last: bool) -> AbstractContextManager[Any]:  # noqa: FBT001 - a callback's one argument
        return nullcontext() if last else self._ddp.no_sync()

    @torch.no_grad()
    def predict(self, batch: Batch) -> Tensor:
        """Logits `B,1,H,W` in fp32."""
        self._pass.eval()
        logits: Tensor = self._pass(batch.to(ranks.rank_device(), torch.float32))
        return logits

    def local_parameters(self) -> dict[str, Tensor]:
        """The whole of each trained parameter."""
        return {name: parameter.data for name, parameter in self._trained.items()}

    def gather(self, name: str, local: Tensor) -> Tensor:  # noqa: ARG002 - whole already
        """The tensor itself: every rank holds all of it."""
        return local

    def part(self, name: str, whole: Tensor) -> Tensor:  # noqa: ARG002 - whole already
        """The tensor itself: every rank holds all of it."""
        return whole

    def whole_state(self) -> Iterator[tuple[str, Any]]:
        """The network's state dict, tensor by tensor."""
        for name, tensor in self.network.state_dict(keep_vars=True).items():
            yield name, partial(torch.Tensor.detach, tensor)

    def release(self) -> None:
        """Nothing is gathered here."""

    def snapshot(self) -> dict[str, Tensor]:
        """This rank's turn of weights and moments."""
        return own_turn(self._wholes())

    def _wholes(self) -> Iterator[tuple[str, Any]]:
        yield from ((f"weights/{name}", whole) for name, whole in self.whole_state())
        for name, parameter in self._trained.items():
            state = self._optimiser.state.get(parameter) or optimiser_step(0, parameter)
            yield from (
                (f"{moment}/{name}", partial(torch.Tensor.detach, state[moment])) for moment in MOMENTS
            )
        yield "step", lambda: torch.tensor([self._step])

    def load(self, folder: Path) -> None:
        """Read weights and moments that any engine wrote."""
        with open_named(folder, ENGINE_FILE) as wholes, torch.no_grad():
            for name, tensor in self.network.state_dict(keep_vars=True).items():
                tensor.copy_(wholes[f"weights/{name}"])
            self._step = int(wholes["step"])
            for name, parameter in self._trained.items() if self._step else ():
                state = self._optimiser.state[parameter] = optimiser_step(self._step, parameter)
                for moment in MOMENTS:
                    state[moment].copy_(wholes[f"{moment}/{name}"])

    def close(self) -> None:
        """Wait for all ranks."""
        ranks.wait_for_all()


def clip_gradients(parameters: Iterable[nn.Parameter], config: TrainConfig) -> float:
    """Clip whole gradients by their norm where the configuration says so; the norm before."""
    clip = float("inf") if config.clip_norm is None else config.clip_norm
    return float(nn.utils.clip_grad_norm_(parameters, clip))


def _nothing() -> None:
    """Between micro batches DDP needs no call."""
