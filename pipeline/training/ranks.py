"""The ranks of one training: their process group, what they tell each other, and their randomness."""

import contextlib
import os
import random
from collections.abc import Iterator, Mapping
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank_device() -> torch.device:
    """This rank's device: its GPU where there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Make sure that there is a process group; one that was made here is closed at the end.

    Under Ray Train, which brings its own, nothing is opened or closed. Otherwise `RANK`, `WORLD_SIZE`, `MASTER_ADDR`
    and `MASTER_PORT` say who takes part, or this process is alone.
    """
    if dist.is_initialized():
        yield
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        alone = dist.HashStore()  # type: ignore[attr-defined]  # exported, though not by name
        dist.init_process_group(backend, store=alone, rank=0, world_size=1)
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()


def share_weights(network: nn.Module) -> None:
    """Give every rank rank 0's parameters and buffers."""
    if world_size() == 1:
        return
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            dist.broadcast(tensor, src=0)


def add_over_ranks(value: Tensor) -> Tensor:
    """The sum over all ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def add_figures(figures: Mapping[str, float]) -> dict[str, float]:
    """Sums of named figures over all ranks, equal on each: what a sharded validation merges its counts with."""
    names = sorted(figures)
    values = torch.tensor([figures[name] for name in names], dtype=torch.float64, device=rank_device())
    return dict(zip(names, add_over_ranks(values).tolist(), strict=True))


def count(*signs: bool) -> list[int]:
    """Of each sign the number of ranks that show it, equal on every rank."""
    if world_size() == 1:
        return [int(sign) for sign in signs]
    shown = torch.tensor([float(sign) for sign in signs], device=rank_device())
    return [round(number) for number in add_over_ranks(shown).tolist()]


def agree(value: T) -> T:
    """Rank 0's value, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def collect(value: T) -> list[T]:
    """Every rank's value, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]  # every slot is filled now


def wait_for_all() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on all devices. Only what is not drawn by a hash of its own follows from it."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries that draw from NumPy's global state are seeded too
    torch.manual_seed(seed)
