"""What the pipeline asks of an object store."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectInfo:
    """One object as a listing or a HEAD tells it. `etag` changes whenever the content does."""

    key: str
    size: int  # bytes
    etag: str
    modified: float  # when it was written, by the store's clock: seconds since the epoch


class ObjectStore(Protocol):
    """Objects under one URL. Keys are relative, with `/` between their parts.

    Every call may be retried inside (bounded, jittered) for what the infrastructure did, and ends as
    `OSError` where that does not help (see `faults`); a user's mistake (bucket missing, wrong credentials, no
    permission, a key that leaves the store) is a `UserError` at once. Stores may be pickled, and shared by
    threads. What is written, and what `get` reads, is checked on its way; ranges are for the caller to check.
    """

    @property
    def url(self) -> str:
        """The store's URL, without a slash at its end."""
        ...

    def get(self, key: str, *, at_most: int | None = None) -> bytes:
        """The whole object. `KeyError` where there is none; `ObjectTooLargeError`, unread, above `at_most` bytes."""
        ...

    def get_range(self, key: str, *, start: int, length: int) -> bytes:
        """`length` bytes from `start`. `KeyError` where there is no object; `OSError` where it is shorter."""
        ...

    def get_range_into(self, key: str, *, start: int, buffers: Sequence[memoryview]) -> None:
        """Fill writable bytes, in their order, with what lies from `start` on: no copy is made on the way.

        Errors are those of `get_range`; what the buffers hold then is undefined.
        """
        ...

    def put(self, key: str, body: bytes | Path) -> None:
        """Write or replace the object, whole or not at all. A `Path` is streamed."""
        ...

    def create(self, key: str, body: bytes | Path, *, sha256: str | None = None) -> bool:
        """Write the object only if there is none (`If-None-Match: *`). False where one was there first.

        `sha256`, where it is known already, guards the body on its way in place of a checksum computed here.
        """
        ...

    def replace(self, key: str, body: bytes | Path, *, etag: str) -> bool:
        """Write the object only over the version with this ETag (`If-Match`). False where that is gone."""
        ...

    def stat(self, key: str) -> ObjectInfo | None:
        """Size, ETag and time, or None where there is no object."""
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix`, in key order, fetched page by page."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; nothing happens where there is none."""
        ...

    def discard_unfinished(self, *, older_than_s: float) -> int:
        """Free the space of writes that were killed before they became visible; their number."""
        ...
