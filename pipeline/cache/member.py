"""Members of a cache: one sample in one draw, with an id made of content alone."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.datasets.sample import Sample

KEY_DIGITS = 32  # 128 bits: 40 bytes an index entry leave room for 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One sample in one draw. `key` names it in the shard, the index and every log."""

    key: str
    sample_id: str
    image_digest: str
    draw: int
    sample: Sample


def sample_id(sample: Sample, digest: Callable[[str], str]) -> str:
    """Name a sample by its content: the image's bytes, the phrase, the mask. Where it lies does not matter."""
    return _hash(digest(sample.image), sample.phrase, sample.mask.identity(digest))


def member_key(sample: str, draw: int) -> str:
    """The key of a sample's draw: uniformly spread, so key order is a shuffle."""
    return _hash(sample, str(draw))


def _hash(*parts: str) -> str:
    encoded = [part.encode("utf-8", errors="surrogatepass") for part in parts]
    framed = b"".join([len(part).to_bytes(8, "big") + part for part in encoded])
    return hashlib.sha256(framed).hexdigest()[:KEY_DIGITS]
