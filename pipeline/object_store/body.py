"""What is written to an object: bytes, or a file that is streamed."""

import base64
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Body:
    """A body that can be opened again for each try."""

    source: bytes | Path

    @property
    def size(self) -> int:
        """In bytes."""
        return self.source.stat().st_size if isinstance(self.source, Path) else len(self.source)

    def open(self) -> BinaryIO:
        """A stream at the start of the body."""
        return self.source.open("rb") if isinstance(self.source, Path) else io.BytesIO(self.source)

    def part(self, *, start: int, length: int) -> bytes:
        """A piece of the body, shorter only at its end."""
        with self.open() as stream:
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
