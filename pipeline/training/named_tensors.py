"""Whole tensors by name, kept by all ranks together and read by any number of them: safetensors, no pickle."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.training import ranks


def rank_folder(folder: Path, number: int) -> Path:
    """Where rank `number` writes in a checkpoint folder."""
    return folder / f"rank-{number:05d}"


def own_turn(tensors: Iterable[tuple[str, Callable[[], Tensor]]]) -> dict[str, Tensor]:
    """This rank's turn of the whole tensors, copied to the host: the i-th is the turn of rank `i mod ranks`.

    Every rank calls every tensor's function, in the same order, since that may gather it from all of them.
    """
    own: dict[str, Tensor] = {}
    for index, (name, whole) in enumerate(tensors):
        tensor = whole()
        if index % ranks.world_size() == ranks.rank():
            own[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return own


class NamedTensors:
    """Tensors by name from the files of all ranks that wrote them, read one by one."""

    def __init__(self, handles: Iterable[Any]) -> None:
        self._handles = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118 - no mapping

    def __contains__(self, name: str) -> bool:
        return name in self._handles

    def __getitem__(self, name: str) -> Tensor:
        return self._handles[name].get_tensor(name)


@contextmanager
def open_named(folder: Path, file: str) -> Iterator[NamedTensors]:
    """Open what ranks, however many, wrote of their turns: `rank-*/FILE` under `folder`."""
    from safetensors import safe_open

    with ExitStack() as stack:
        paths = sorted(folder.glob(f"rank-*/{file}"))
        yield NamedTensors([stack.enter_context(safe_open(path, "pt")) for path in paths])


def optimiser_step(step: int, like: Tensor) -> dict[str, Tensor]:
    """Fresh AdamW state for a tensor after `step` steps, moments still zero."""
    return {
        "step": torch.tensor(float(step), dtype=torch.float32, device=like.device),
        "exp_avg": torch.zeros_like(like),
        "exp_avg_sq": torch.zeros_like(like),
    }
