"""A folder with an object store's promises: objects appear whole, once, and outlive a crash."""

import errno
import fcntl
import io
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from ldznet.errors import UserError
from pipeline.object_store.buffers import after
from pipeline.object_store.faults import ObjectTooLargeError
from pipeline.object_store.key import check_key, check_prefix
from pipeline.object_store.store import ObjectInfo

LONGEST_PART = 255  # bytes of UTF-8; the limit of most file systems

_MOST_BUFFERS = 1024  # a system call; Linux's limit
_UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.partial")
_NO_LOCKS = frozenset({errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


@dataclass(frozen=True, kw_only=True, slots=True)
class FileStore:
    """Objects as files under `root`, which is made at the first write.

    A write goes to a hidden file beside its target, is synced, and appears by one rename or hard link.
    The ETag is (size, time of change, inode); a writer sets the time itself, later than its predecessor's, so
    that a reused inode cannot repeat an ETag. Writers that replace, repair or delete lock the folder for that
    step. One key cannot be another's folder: with an object `a` there is no `a/b`.
    """

    root: Path

    def __post_init__(self) -> None:
        """Refuse a root that would change its meaning with the working directory."""
        if not self.root.is_absolute():
            raise UserError(f"a file store needs an absolute folder, not {str(self.root)!r}")

    @property
    def url(self) -> str:
        """`file:///…`, percent-encoded where needed."""
        return self.root.as_uri().rstrip("/")

    def path(self, key: str) -> Path:
        """Where the object lies, for readers that map it into memory."""
        parts = check_key(key).split("/")
        if _UNFINISHED.fullmatch(parts[-1]):
            raise UserError(f"object key {key!r} has the form of an unfinished file: name it differently")
        if max(len(part.encode()) for part in parts) > LONGEST_PART:
            raise UserError(
                f"object key {key[:40]!r}… has a part of more than {LONGEST_PART} bytes: shorten it"
            )
        return self.root / key

    def get(self, key: str, *, at_most: int | None = None) -> bytes:
        """The whole object. `KeyError` where there is none; `ObjectTooLargeError`, unread, above `at_most` bytes."""
        with self._reading(key), self._opened(key) as file:
            size = os.fstat(file.fileno()).st_size
            if at_most is not None and size > at_most:
                raise ObjectTooLargeError.of(f"{self.url}/{key}", size=size, at_most=at_most)
            return file.readall()

    def get_range(self, key: str, *, start: int, length: int) -> bytes:
        """`length` bytes from `start`. `KeyError` where there is no object; `OSError` where it is shorter."""
        with self._reading(key), self._opened(key) as file:
            file.seek(start)
            pieces = []
            while length > 0 and (piece := file.read(length)):
                pieces.append(piece)
                length -= len(piece)
        if length > 0:
            raise OSError(errno.EIO, f"{self.url}/{key} ends {length} bytes before the range asked for")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def get_range_into(self, key: str, *, start: int, buffers: Sequence[memoryview]) -> None:
        """Fill writable bytes, in their order, with what lies from `start` on; errors as `get_range`'s."""
        left = [buffer for buffer in buffers if buffer.nbytes]
        with self._reading(key), self._opened(key) as file:
            while left and (read := os.preadv(file.fileno(), left[:_MOST_BUFFERS], start)):
                start += read
                left = after(left, read)
        if left:
            length = sum(buffer.nbytes for buffer in left)
            raise OSError(errno.EIO, f"{self.url}/{key} ends {length} bytes before the range asked for")

    def put(self, key: str, body: bytes | Path) -> None:
        """Write or replace the object, whole or not at all. A `Path` is copied."""
        with self._writing(key), self._unfinished(key, body) as (written, target):
            with _locked(target.parent):
                _rename(written, target)
            _sync_folder(target.parent)

    def create(self, key: str, body: bytes | Path, *, sha256: str | None = None) -> bool:  # noqa: ARG002 - no network to guard
        """Write the object only if there is none. Of racing writers one succeeds with its hard link."""
        with self._writing(key):
            if self.path(key).is_file():
                return False
            with self._unfinished(key, body) as (written, target):
                try:
                    os.link(written, target)
                except FileExistsError:
                    if target.is_dir():
                        raise
                    return False
                except OSError as error:
                    if error.errno not in _NO_LINKS:
                        raise
                    raise UserError(f"{self.root} has no hard links: use another disk, or s3://") from error
                _sync_folder(target.parent)
        return True

    def replace(self, key: str, body: bytes | Path, *, etag: str) -> bool:
        """Write the object only over the version with this ETag. False where that is gone."""
        found = self.stat(key)
        if found is None or found.etag != etag:
            return False
        with self._writing(key), self._unfinished(key, body) as (written, target):
            with _locked(target.parent, needed=True):
                found = self.stat(key)
                if found is None or found.etag != etag:
                    return False
                _rename(written, target)
            _sync_folder(target.parent)
        return True

    def stat(self, key: str) -> ObjectInfo | None:
        """Size, ETag and time, or None where there is no object."""
        path = self.path(key)
        try:
            with self._reading(key):
                return _info(key, path.stat())
        except KeyError:
            return None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix`, in key order, one folder at a time."""
        folder = check_prefix(prefix).rpartition("/")[0]
        path = self.root / folder
        if not path.is_dir():
            return iter(())
        return self._walk(path, f"{folder}/" if folder else "", prefix, frozenset())

    def delete(self, key: str) -> None:
        """Remove the object; nothing happens where there is none."""
        path = self.path(key)
        if self.stat(key) is None:
            return
        with self._writing(key):
            with _locked(path.parent):
                path.unlink(missing_ok=True)
            _sync_folder(path.parent)

    def discard_unfinished(self, *, older_than_s: float) -> int:
        """Remove hidden files of killed writers that were last written to longer ago than this."""
        removed = 0
        for folder, _, names in os.walk(self.root):
            for name in filter(_UNFINISHED.fullmatch, names):
                path = Path(folder, name)
                try:
                    if time.time() - path.stat().st_mtime > older_than_s:
                        path.unlink()
                        removed += 1
                except FileNotFoundError:  # its writer has just finished
                    continue
        return removed

    def _walk(
        self, folder: Path, start: str, prefix: str, above: frozenset[tuple[int, int]]
    ) -> Iterator[ObjectInfo]:
        """Files below `folder`, whose keys begin with `start`. Links are followed, never round a circle."""
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        with os.scandir(folder) as entries:
            # A folder sorts as "name/": so "a-b" comes before "a/b", as S3 orders keys.
            found = sorted((start + entry.name + "/" * entry.is_dir(), entry) for entry in entries)
        for key, entry in found:
            if not key.startswith(prefix) or _UNFINISHED.fullmatch(entry.name):
                continue
            if key.endswith("/"):
                yield from self._walk(folder / entry.name, key, prefix, above | {here})
                continue
            try:
                found_here = _info(check_key(key), entry.stat())
            except FileNotFoundError:  # deleted since, or a link to nothing
                continue
            if found_here is not None:
                yield found_here

    @contextmanager
    def _unfinished(self, key: str, body: bytes | Path) -> Iterator[tuple[Path, Path]]:
        """The body in a synced hidden file, and the target beside it. The hidden file is gone afterwards."""
        target = self.path(key)
        _make_folder(target.parent)
        written = target.parent / f".{uuid4().hex}.partial"
        try:
            # "x" at the usual permissions: tempfile's 0600 would keep the object from other users.
            with written.open("xb") as file:
                if isinstance(body, Path):
                    with body.open("rb") as source:
                        shutil.copyfileobj(source, file, 1 << 20)
                else:
                    file.write(body)
                file.flush()
                now = time.time_ns()
                os.utime(file.fileno(), ns=(now, now))
                os.fsync(file.fileno())
            yield written, target
        finally:
            written.unlink(missing_ok=True)

    @contextmanager
    def _opened(self, key: str) -> Iterator[io.FileIO]:
        """The object for reading. A pipe is not waited for, a device not read: they are no objects."""
        descriptor = os.open(self.path(key), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with io.FileIO(descriptor) as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise KeyError(key)
            yield file

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise KeyError(key) from error
        except PermissionError as error:
            raise UserError(f"no permission to read {error.filename or self.root}") from error

    @contextmanager
    def _writing(self, key: str) -> Iterator[None]:
        try:
            yield
        except PermissionError as error:
            raise UserError(f"no permission to write {error.filename or self.root}") from error
        except (IsADirectoryError, NotADirectoryError, FileExistsError) as error:
            raise UserError(f"object key {key!r}: a file store cannot hold both 'a' and 'a/b'") from error


def _info(key: str, status: os.stat_result) -> ObjectInfo | None:
    """What the file is as an object; pipes, devices and folders are none."""
    if not stat.S_ISREG(status.st_mode):
        return None
    etag = f"{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ino:x}"
    return ObjectInfo(key=key, size=status.st_size, etag=etag, modified=status.st_mtime)


def _rename(written: Path, target: Path) -> None:
    """Put `written` in the place of `target`, with a time after its predecessor's. The folder is locked."""
    try:
        before = target.stat().st_mtime_ns
    except FileNotFoundError:
        before = 0
    if written.stat().st_mtime_ns <= before:
        os.utime(written, ns=(before + 1, before + 1))
    written.replace(target)


@contextmanager
def _locked(folder: Path, *, needed: bool = False) -> Iterator[None]:
    """One writer at a time. Where folders cannot be locked (some network disks) only `needed` ones fail."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            if needed:
                raise UserError(
                    f"{folder} cannot be locked for a repair: use another disk, or s3://"
                ) from error
        yield
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Make the folder and those above it so that they outlive a crash."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
