"""A shard: a plain tar of samples, written once, under a name that holds its content hash."""

import hashlib
import io
import tarfile
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

import xxhash
from webdataset.writer import TarWriter

from pipeline.cache import layout
from pipeline.cache.receipt import SampleSpan
from pipeline.object_store.store import ObjectStore

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_PIECE = 1 << 26  # bytes
_TRIES = 8


class _HashingFile(io.RawIOBase):
    """A file that hashes what passes: the shard's SHA-256 and the current sample's xxh3-64."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self.sha256 = hashlib.sha256()
        self.sample = xxhash.xxh3_64()
        self.size = 0

    def write(self, data: "ReadableBuffer") -> int:
        self.sha256.update(data)
        self.sample.update(data)
        self.size += memoryview(data).nbytes
        return self._file.write(data)

    def tell(self) -> int:
        return self.size


class ShardWriter:
    """Writes samples, in key order, into a tar that any `webdataset` reads; equal samples give equal bytes.

    The tar goes to a local file first: memory stays at one sample, whatever the size of the shard.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spans: list[SampleSpan] = []
        self._raw = path.open("wb")
        self._file = _HashingFile(self._raw)
        self._tar = TarWriter(self._file, user="", group="", mtime=0, encoder=False)
        # TarWriter's stream mode holds bytes back, so a sample's end is not known; plain mode writes through.
        # One piece a file, handed on without a copy, in place of tarfile's 16 KiB.
        self._tar.tarstream = tarfile.TarFile(
            fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT, copybufsize=_PIECE
        )

    def write(self, key: str, files: dict[str, bytes]) -> None:
        """Append one sample. Keys must rise."""
        assert not self.spans or self.spans[-1].key < key, "samples are written in key order"
        offset = self._file.size
        self._file.sample.reset()
        self._tar.write({"__key__": key, **files})
        span = SampleSpan(
            key=key, offset=offset, size=self._file.size - offset, xxh3=self._file.sample.hexdigest()
        )
        self.spans.append(span)

    @property
    def sha256(self) -> str:
        """Of the whole tar, once it is closed."""
        assert self._raw.closed, "the hash is known when the tar is closed"
        return self._file.sha256.hexdigest()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._file.size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._tar.close()
        self._raw.close()


def upload_shard(store: ObjectStore, writer: ShardWriter, *, cache_key: str, shard_id: str) -> str:
    """Put a finished shard under the name that holds its hash. Returns its key.

    An equal one may be there already, of a racing writer or of one that was killed before its receipt. What is there
    under that name with other content is damaged, and is written anew.

    Raises:
        OSError: somebody keeps changing the object.
    """
    key = layout.shard_key(cache_key, shard_id, writer.sha256)
    for _ in range(_TRIES):
        if store.create(key, writer.path, sha256=writer.sha256):
            return key
        info = store.stat(key)
        if info is None:
            continue
        if info.size == writer.size and _sha256(store, key, writer.size) == writer.sha256:
            return key
        if store.replace(key, writer.path, etag=info.etag):
            return key
    raise OSError(f"{store.url}/{key} kept changing: is something else writing there?")


def _sha256(store: ObjectStore, key: str, size: int) -> str:
    hasher = hashlib.sha256()
    for start in range(0, size, _PIECE):
        hasher.update(store.get_range(key, start=start, length=min(_PIECE, size - start)))
    return hasher.hexdigest()
