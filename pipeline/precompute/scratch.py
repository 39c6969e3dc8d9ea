"""Local scratch of a shard in the making: a folder of its own, and a file that takes what memory shall not hold.

A folder is held by a lock on it (`flock`), which the system drops when the process ends, however it ends. So a worker
that starts can tell what dead ones left behind and remove it, and never takes a living one's: across containers, and
whatever process ids are used again.
"""

import fcntl
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_PREFIX: Final = "ldznet-shard-"


@contextmanager
def shard_folder(parent: Path | None = None) -> Iterator[Path]:
    """A folder that goes at the end; in `parent`, else where the system keeps temporary files (`TMPDIR`)."""
    parent = parent or Path(tempfile.gettempdir())
    held = None
    while held is None:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        held = _hold(path)  # None where a worker that starts just took it for a dead one's
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


def sweep_stale_folders(parent: Path | None = None) -> int:
    """Remove the folders of dead processes of this user; their number."""
    parent, removed = parent or Path(tempfile.gettempdir()), 0
    for path in sorted(parent.glob(f"{_PREFIX}*")):
        held = _hold(path)
        if held is None:
            continue
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)
        removed += 1
    if removed:
        logger.info("removed %d scratch folders that dead workers left in %s", removed, parent)
    return removed


def _hold(path: Path) -> int | None:
    """A descriptor that holds the folder's lock; None where another process does, or it is gone, or not ours."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None  # gone, another user's, or no folder
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        opened, named = os.fstat(descriptor), path.lstat()
    except OSError:  # BlockingIOError: it is held; FileNotFoundError: it went between the two lines
        os.close(descriptor)
        return None
    ours = opened.st_uid == os.getuid() and stat.S_ISDIR(named.st_mode)
    if not ours or (opened.st_dev, opened.st_ino) != (named.st_dev, named.st_ino):
        os.close(descriptor)
        return None
    return descriptor


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
