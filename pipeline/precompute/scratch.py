"""Local scratch of a shard in the making: a folder of its own, and a file that takes what memory shall not hold."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import torch
from torch import Tensor

from pipeline.held_folder import held_folder, sweep_folders

_PREFIX: Final = "ldznet-shard-"


def shard_folder(parent: Path | None = None) -> AbstractContextManager[Path]:
    """A folder of its own for one shard; see `held_folder`."""
    return held_folder(_PREFIX, parent)


def sweep_stale_folders(parent: Path | None = None) -> int:
    """Remove the folders of dead workers; their number."""
    return sweep_folders(_PREFIX, parent)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Where something lies in the scratch file."""

    offset: int
    size: int


class Scratch:
    """An append-only file for tensors and bytes. One thread uses it.

    Plain reads and writes, no memory map: what lies here is the system's page cache, not the process's memory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._end = 0

    def put(self, data: bytes | memoryview) -> Stretch:
        """Append bytes."""
        left, place = memoryview(data).cast("B"), Stretch(self._end, memoryview(data).nbytes)
        while left.nbytes:
            try:
                written = os.pwrite(self._file, left, self._end)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self._path)) from error
            self._end += written
            left = left[written:]
        return place

    def get(self, place: Stretch) -> bytes:
        """The bytes again."""
        data = os.pread(self._file, place.size, place.offset)
        assert len(data) == place.size, f"{self._path} has been cut"
        return data

    def put_tensor(self, tensor: Tensor) -> Stretch:
        """Append a tensor that lies on the host."""
        return self.put(tensor.contiguous().view(torch.uint8).numpy().data.cast("B"))

    def get_tensors(
        self, places: Sequence[Stretch], *, shape: Sequence[int], dtype: torch.dtype, pinned: bool = False
    ) -> Tensor:
        """Tensors of one shape, stacked: `N,*shape`."""
        stacked = torch.empty(len(places), *shape, dtype=dtype, pin_memory=pinned)
        for row, place in zip(stacked, places, strict=True):
            into = row.view(torch.uint8).numpy().data.cast("B")
            read = os.preadv(self._file, [into], place.offset)
            assert read == place.size == into.nbytes, f"{self._path} has been cut"
        return stacked

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)
