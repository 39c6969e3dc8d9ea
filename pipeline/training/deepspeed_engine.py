"""DeepSpeed ZeRO 0-3: optimiser state, gradients and parameters spread over the ranks, stage by stage."""

import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.loading.batch import Batch
from pipeline.training import ranks
from pipeline.training.config import TrainConfig
from pipeline.training.ddp_engine import MOMENTS, clip_gradients
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
from pipeline.training.named_tensors import NamedTensors, open_named, optimiser_step, own_turn

_LARGEST_BUCKET = 200_000_000  # elements reduced at once: 0.8 GB in fp32


def prepare_deepspeed() -> Any:
    """Import DeepSpeed so that nothing is compiled on the CPU and it does not chatter."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"torch\.distributed"
    )  # DeepSpeed's own calls
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        # Without this a C++ extension for shared-memory collectives is built at the first start (minutes, and a
        # compiler); setting the table also spares the probe of all extensions. A private hook: DeepSpeed is pinned.
        vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    return deepspeed


def deepspeed_config(config: TrainConfig, *, elements: int, largest: int) -> dict[str, Any]:
    """DeepSpeed's configuration. Weights are fp32 and autocast is ours, so no precision section.

    Args:
        config: The training's configuration.
        elements: Trained numbers in the network.
        largest: Numbers in its largest parameter, the least that a bucket must hold.
    """
    on_gpu = torch.cuda.is_available()
    zero: dict[str, Any] = {
        "stage": config.stage,
        "overlap_comm": on_gpu,
        "contiguous_gradients": True,
        "reduce_bucket_size": max(largest, min(elements, _LARGEST_BUCKET)),
        "allgather_bucket_size": max(largest, min(elements, _LARGEST_BUCKET)),
        "stage3_param_persistence_threshold": 0,  # every parameter is in parts between steps: the EMA counts on it
        # How far DeepSpeed looks ahead whether a gathered parameter is soon needed again, after every module. By
        # default as far as there are modules, and a UNet has hundreds: that took most of a step.
        "stage3_max_reuse_distance": largest,
    }
    if config.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    return {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": (config.clip_norm or 0.0)
        if config.stage
        else 0.0,  # stage 0 keeps no norm: ours
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW serves the CPU too, without a build
        "steps_per_print": 2**31,
    }


class DeepSpeedEngine:
    """ZeRO at the configured stage. Checkpoints are ours: whole tensors by name, so any stage reads any other's."""

    def __init__(self, network: nn.Module, *, forward: Forward, loss: Loss, config: TrainConfig) -> None:
        deepspeed = prepare_deepspeed()
        self._config = config
        self._pass = forward_pass(network, forward, config)
        self._trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        sizes = [parameter.numel() for parameter in self._trained.values()]
        self._engine, *_ = deepspeed.initialize(
            model=self._pass,
            optimizer=adamw(list(self._trained.values()), config),
            config=deepspeed_config(config, elements=sum(sizes), largest=max(sizes)),
            dist_init_required=False,
        )
        self._optimiser = self._engine.optimizer
        self._accumulation = Accumulation(
            module=self._engine, loss=loss, micro_batch=config.micro_batch_size, limit=config.stop_above_loss
        )
        self._step = 0

    @property
    def network(self) -> nn.Module:
        """The network itself; in parts under ZeRO-3."""
        return self._pass.network

    @property
    def step(self) -> int:
        """Optimiser steps taken."""
        return self._step

    def train_step(self, batch: Batch, *, lr: float) -> StepReport:
        """One optimiser step on this rank's share of the global batch."""
        self._engine.train()
        loss = self._accumulation.run(
            batch,
            step=self._step + 1,
            backward=partial(self._engine.backward, scale_wrt_gas=False),
            around=_around,
            between=self._engine.step,  # counts the micro batch; the optimiser waits for the last
        )
        for group in self._optimiser.param_groups:
            group["lr"] = lr
        norm = self._optimiser_step(batch)
        self._step += 1
        return StepReport(loss=loss, lr=lr, grad_norm=norm)

    def _optimiser_step(self, batch: Batch) -> float:
        """Clip and step; the gradient's norm. At ZeRO 1-3 DeepSpeed does both, and skips where it is not finite."""
        zero = self._config.stage > 0
        norm = 0.0 if zero else clip_gradients(self._trained.values(), self._config)
        if math.isfinite(norm):
            self._engine.step()
            norm = float(self._engine.get_global_grad_norm()) if zero else norm
        if not math.isfinite(norm):
            changed = zero and not self._optimiser.overflow
            raise NonFiniteGradientError(step=self._step + 1, keys=all_keys(batch), weights_changed=changed)
        return norm

    @torch.no_grad()
    def predict(self, batch: Batch) -> Tensor:
        """Logits `B,1,H,W` in fp32."""
        self._engine.eval()
        logits: Tensor = self._engine(batch.to(ranks.rank_device(), torch.float32))
        return logits

    def local_parameters(self) -> dict[str, Tensor]:
        """This rank's part of each trained parameter: flat and padded under ZeRO-3, whole otherwise."""
        return {name: _own(parameter) for name, parameter in self._trained.items()}

    def gather(self, name: str, local: Tensor) -> Tensor:
        """The whole tensor from all ranks' parts."""
        return _gather(self._trained[name], local)

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part, padded with zeros as DeepSpeed pads."""
        return _part(self._trained[name], whole)

    def whole_state(self) -> Iterator[tuple[str, Any]]:
        """The network's state dict, tensor by tensor; calling one gathers it."""
        for name, tensor in self.network.state_dict(keep_vars=True).items():
            yield name, partial(_gather, tensor, _own(tensor))

    def release(self) -> None:
        """Drop gathered copies under ZeRO-3."""
        if self._config.stage == 3:
            self._optimiser.empty_partition_cache()

    def snapshot(self) -> dict[str, Tensor]:
        """This rank's turn of weights and moments."""
        self.release()
        return own_turn(self._wholes())

    def _wholes(self) -> Iterator[tuple[str, Any]]:
        yield from ((f"weights/{name}", whole) for name, whole in self.whole_state())
        for name, parameter in self._trained.items() if self._step else ():
            yield from ((f"{moment}/{name}", partial(self._moment, parameter, moment)) for moment in MOMENTS)
        yield "step", lambda: torch.tensor([self._step])

    def _moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        from deepspeed.utils import safe_get_full_optimizer_state, safe_get_local_optimizer_state

        if self._config.stage == 0:
            value: Tensor = self._optimiser.state[parameter][moment]
            return value
        if self._config.stage == 3:
            return _gather(parameter, safe_get_local_optimizer_state(parameter, moment))
        whole: Tensor = safe_get_full_optimizer_state(parameter, moment)
        return whole

    def load(self, folder: Path) -> None:
        """Read weights and moments that any engine wrote."""
        self.release()
        with open_named(folder, ENGINE_FILE) as wholes, torch.no_grad():
            for name, tensor in self.network.state_dict(keep_vars=True).items():
                own = _own(tensor)
                own.copy_(_part(tensor, wholes[f"weights/{name}"].to(own.device)))
            self._step = int(wholes["step"])
            self._load_optimiser(wholes)

    def _load_optimiser(self, wholes: NamedTensors) -> None:
        self._fill_state()
        for name, parameter in self._trained.items():
            values = {moment: wholes[f"{moment}/{name}"] for moment in MOMENTS if self._step}
            if self._config.stage == 0:
                for moment, value in values.items():
                    self._optimiser.state[parameter][moment].copy_(value)
            else:
                _set_partitioned(parameter, wholes[f"weights/{name}"], values, stage=self._config.stage)

    def _fill_state(self) -> None:
        """Give AdamW the state that its first step would make, so that there is something to read into."""
        if not self._step:
            return
        stage = self._config.stage
        base = self._optimiser if stage == 0 else self._optimiser.optimizer
        flats = {0: None, 3: "fp32_partitioned_groups_flat"}.get(stage, "single_partition_of_fp32_groups")
        for tensor in self._trained.values() if flats is None else getattr(self._optimiser, flats):
            fresh, state = optimiser_step(self._step, tensor), base.state[tensor]
            state.setdefault("step", fresh["step"]).copy_(fresh["step"])
            for moment in MOMENTS:  # in place where there is one: DeepSpeed holds views of it
                state.setdefault(moment, fresh[moment])
        if stage in {1, 2}:
            self._optimiser._lazy_init_hp_params_optimizer_state()  # noqa: SLF001 - makes those views

    def close(self) -> None:
        """Wait for all ranks and let go of hooks and buffers."""
        ranks.wait_for_all()
        self._engine.destroy()


def _around(last: bool) -> AbstractContextManager[Any]:  # noqa: ARG001, FBT001 - DeepSpeed knows the boundary itself
    return nullcontext()


def _own(tensor: Tensor) -> Tensor:
    """This rank's live part of a parameter or buffer."""
    own: Tensor = tensor.ds_tensor.data if hasattr(tensor, "ds_tensor") else tensor.data
    return own


def _gather(parameter: Tensor, local: Tensor) -> Tensor:
    """Parts `n` of all ranks -> the parameter's own shape. Under ZeRO 0-2 the part is the whole."""
    if not hasattr(parameter, "ds_tensor"):
        return local
    local = local.to(ranks.rank_device())
    flat = torch.empty(local.numel() * ranks.world_size(), dtype=local.dtype, device=local.device)
    dist.all_gather_into_tensor(flat, local.contiguous())
    return flat[: parameter.ds_numel].view(parameter.ds_shape)  # type: ignore[attr-defined]  # ZeRO-3 adds them


def _part(parameter: Tensor, whole: Tensor) -> Tensor:
    """The parameter's own shape -> this rank's part `n`, zero beyond the end."""
    if not hasattr(parameter, "ds_tensor"):
        return whole
    size = parameter.ds_tensor.numel()
    flat = torch.zeros(size, dtype=whole.dtype, device=whole.device)
    own = whole.flatten()[ranks.rank() * size : (ranks.rank() + 1) * size]
    flat[: own.numel()] = own
    return flat


def _set_partitioned(
    parameter: nn.Parameter, weight: Tensor, moments: dict[str, Tensor], *, stage: int
) -> None:
    """Write master weight and moments of one parameter into DeepSpeed's partitions."""
    from deepspeed import utils

    if stage == 3:
        utils.safe_set_local_fp32_param(parameter, _part(parameter, weight))
        for moment, value in moments.items():
            utils.safe_set_local_optimizer_state(parameter, _part(parameter, value), moment)
        return
    utils.safe_set_full_fp32_param(parameter, weight)
    for moment, value in moments.items():
        utils.safe_set_full_optimizer_state(parameter, value, moment)
