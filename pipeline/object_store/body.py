"""What is written to an object: bytes, or a file that is streamed."""

import base64
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

_BLOCK = 1 << 20


class _WideReads(io.RawIOBase):
    """A file that gives at least a mebibyte a read, to a reader who takes what he gets.

    `http.client` asks for 16 KiB at a time, and each costs two system calls and the interpreter's lock.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        return self._file.read(-1 if size is None or size < 0 else max(size, _BLOCK))

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(frozen=True, slots=True)
class Body:
    """A body that can be opened again for each try."""

    source: bytes | Path

    @property
    def size(self) -> int:
        """In bytes."""
        return self.source.stat().st_size if isinstance(self.source, Path) else len(self.source)

    def open(self) -> IO[bytes]:
        """A stream at the start of the body; a read may give more than was asked for."""
        if isinstance(self.source, Path):
            return cast("IO[bytes]", _WideReads(self.source.open("rb", buffering=0)))
        return io.BytesIO(self.source)

    def part(self, *, start: int, length: int) -> bytes:
        """A piece of the body, shorter only at its end."""
        if not isinstance(self.source, Path):
            return self.source[start : start + length]
        with self.source.open("rb") as stream:
            stream.seek(start)
            return stream.read(length)

    def md5(self) -> "hashlib._Hash":
        """The digest that guards the body on its way; against an attacker the signature does."""
        digest = hashlib.md5(usedforsecurity=False)
        with self.open() as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
        return digest


def content_md5(digest: "hashlib._Hash") -> str:
    """A digest as the `Content-MD5` header has it."""
    return base64.b64encode(digest.digest()).decode()
