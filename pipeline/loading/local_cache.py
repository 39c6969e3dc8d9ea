"""Samples on local disk, near the GPUs: a bounded folder that all processes of a node share.

    FOLDER/usage               bytes in use; whoever changes what is there holds its lock
    FOLDER/samples/ab/NAME     one sample's stretch of its shard
    FOLDER/incoming/NAME       one that is being written; its writer holds its lock

A name is a hash of shard, content and place, so a stale sample is never read. A file appears by one rename, and is
checked by its xxh3-64 on every read: a damaged one is removed and fetched again. A process may be killed anywhere.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

import numpy as np

from ldznet.errors import UserError
from pipeline.cache.committed_shard import ShardReference
from pipeline.cache.sample_reading import is_sound

logger = logging.getLogger(__name__)

_COUNTER_BYTES: Final = 8
# Of the limit, at a time: listing the folder takes seconds where it holds a million files.
_FREED_SHARE: Final = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept:
    """A file that is there."""

    path: Path
    size: int  # bytes
    used: float  # when it was last read or written, seconds since the epoch


class LocalCache:
    """A `StretchStore` in a folder, never above `limit` bytes. May be pickled, and shared by threads and processes.

    The least recently used sample goes first, but none that was used since the cache was opened: an epoch reads each
    sample once, and would else drop each shortly before its turn. So what does not fit is read from the store, and
    what fits is read here, epoch after epoch; what earlier runs left gives way.
    """

    def __init__(self, folder: Path, *, limit: int, opened: float | None = None) -> None:
        """Make the folder, if it is not there.

        Args:
            folder: on a local disk.
            limit: bytes, of all processes that share the folder.
            opened: what was used since is kept, seconds since the epoch; None: now.

        Raises:
            UserError: nothing can be written there.
        """
        self.folder, self.limit = folder, limit
        self.opened = time.time() if opened is None else opened
        self._full = False  # nothing will be taken any more
        self._unreadable = False  # said once
        try:
            (folder / "samples").mkdir(parents=True, exist_ok=True)
            (folder / "incoming").mkdir(exist_ok=True)
            (folder / "usage").touch()
        except OSError as error:
            raise UserError(f"loader.local_cache={folder} cannot be used: {error.strerror}") from error

    def read(self, shard: ShardReference, row: np.void) -> memoryview | None:
        """A sample's stretch, checked against its row of the index; None where it is not there. Never fails."""
        path = self._path(shard, row)
        size = int(row["size"])
        try:
            body = _read(path, size + 1)
        except FileNotFoundError:
            return None
        except (
            OSError
        ) as error:  # a broken disk, or another user's file: the samples are in the store all the same
            if not self._unreadable:
                logger.warning("%s cannot be read, nor maybe others: fetched instead: %s", path, error)
            self._unreadable = True
            return None
        stretch = memoryview(body)
        if len(body) == size and is_sound(stretch, int(row["xxh3"])):
            return stretch
        logger.warning("%s is damaged: removed, fetched again", path)
        with contextlib.suppress(OSError):  # left there, it is found damaged again
            path.unlink(missing_ok=True)
        return None

    def write(self, shard: ShardReference, row: np.void, stretch: memoryview) -> None:
        """Keep a sound stretch, if there is room. Never fails for lack of it."""
        path = self._path(shard, row)
        if self._full or path.exists():
            return
        try:
            self._write(path, stretch)
        except OSError as error:  # a full or broken disk: the samples are in the store all the same
            logger.warning("%s takes no more samples: %s", self.folder, error)
            self._full = True

    @property
    def used(self) -> int:
        """Bytes in use, as counted; what killed processes were writing is counted until room is needed."""
        with self._locked() as counter:
            return _count(counter)

    def _path(self, shard: ShardReference, row: np.void) -> Path:
        named = f"{shard.object_key} {shard.sha256} {int(row['offset'])} {int(row['size'])}"
        name = hashlib.blake2b(named.encode(), digest_size=20).hexdigest()
        return self.folder / "samples" / name[:2] / name

    def _write(self, path: Path, stretch: memoryview) -> None:
        unfinished = self.folder / "incoming" / uuid4().hex
        file = self._reserve(unfinished, stretch.nbytes)
        if file is None:
            return
        try:
            _write_all(file, stretch)
            try:
                unfinished.rename(path)
            except FileNotFoundError:
                path.parent.mkdir(exist_ok=True)
                unfinished.rename(path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
        finally:
            os.close(file)

    def _reserve(self, unfinished: Path, size: int) -> int | None:
        """A new file of that size, counted and locked by us; None where there is no room."""
        with self._locked() as counter:
            used = _count(counter)
            if used + size > self.limit >= size:
                used = self._make_room(size)
                _set_count(counter, used)
            if used + size > self.limit:
                self._full = True
                return None
            file = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody else knows of it yet
            os.ftruncate(file, size)
            _set_count(counter, used + size)
            return file

    def _make_room(self, size: int) -> int:
        """Remove what was left by others until `size` bytes more fit; bytes in use afterwards, counted anew."""
        # First: what is finished meanwhile is counted twice rather than not at all.
        incoming = self._incoming()
        kept = list(self._kept())
        used = incoming + sum(file.size for file in kept)
        most = self.limit - max(size, int(self.limit * _FREED_SHARE))
        if used + size <= self.limit:
            return used
        for file in sorted(kept, key=lambda one: one.used):
            if used <= most or file.used >= self.opened:
                break
            file.path.unlink(missing_ok=True)
            used -= file.size
        return used

    def _kept(self) -> Iterator[_Kept]:
        for folder in (self.folder / "samples").iterdir():
            with os.scandir(folder) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):  # damaged, and removed by a reader
                        status = entry.stat()
                        yield _Kept(path=Path(entry.path), size=status.st_size, used=status.st_mtime)

    def _incoming(self) -> int:
        """Bytes of files that are being written; those of writers that were killed are removed."""
        total = 0
        for path in (self.folder / "incoming").iterdir():
            try:
                file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:  # finished
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
            except BlockingIOError:
                total += os.fstat(file).st_size
            finally:
                os.close(file)
        return total

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The counter's file, ours alone among all threads and processes."""
        counter = os.open(self.folder / "usage", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(counter, fcntl.LOCK_EX)
            yield counter
        finally:
            os.close(counter)  # the lock goes with it


def _read(path: Path, most: int) -> bytes:
    """A file's first bytes; it counts as used now."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        body = os.pread(file, most, 0)
        with contextlib.suppress(OSError):  # a disk that became read-only: it only looks older
            os.utime(file)
        return body
    finally:
        os.close(file)


def _count(counter: int) -> int:
    return int.from_bytes(os.pread(counter, _COUNTER_BYTES, 0), "little")


def _set_count(counter: int, used: int) -> None:
    os.pwrite(counter, used.to_bytes(_COUNTER_BYTES, "little"), 0)


def _write_all(file: int, body: memoryview) -> None:
    while body:
        body = body[os.write(file, body) :]
