"""The columnar index of a manifest: 40 bytes a sample, mapped into memory as it lies."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.receipt import SampleSpan

INDEX_DTYPE: Final = np.dtype(
    [
        ("key", "S16"),  # the member key's 16 bytes
        ("offset", "<u8"),  # bytes into the shard
        ("xxh3", "<u8"),  # of the sample's stretch
        ("shard", "<u4"),  # position in the manifest's list of shards
        ("size", "<u4"),  # bytes; 0 in a column's index where a shard has no such column
    ]
)
assert INDEX_DTYPE.itemsize == 40, "the index format is 40 bytes a sample"

Index = NDArray[np.void]


def rows_of(spans: Sequence[SampleSpan]) -> Index:
    """One row a sample, in their order; the shard's number is filled in by the manifest."""
    rows = np.empty(len(spans), dtype=INDEX_DTYPE)
    for number, span in enumerate(spans):
        rows[number] = (bytes.fromhex(span.key), span.offset, int(span.xxh3, 16), 0, span.size)
    return rows


def empty_rows(keys: Index) -> Index:
    """Rows for the same samples that lie nowhere: the shard has no such column."""
    rows = np.zeros(len(keys), dtype=INDEX_DTYPE)
    rows["key"] = keys["key"]
    return rows


def join_rows(shards: Sequence[Index]) -> Index:
    """The rows of all shards, each with its shard's position."""
    index = np.concatenate(shards) if shards else np.empty(0, INDEX_DTYPE)
    index["shard"] = np.repeat(np.arange(len(shards), dtype=np.uint32), [len(rows) for rows in shards])
    return index


def key_bytes(index: Index) -> NDArray[np.uint64]:
    """The keys as numbers, `N,2`, in the order of their hexadecimal digits."""
    # A view, and not the S16 field: NumPy's S type drops zero bytes at the end, which a hash may well have.
    raw = np.ascontiguousarray(index).view(np.uint8).reshape(len(index), INDEX_DTYPE.itemsize)[:, :16]
    return np.ascontiguousarray(raw).view(">u8").astype(np.uint64)


def member_key(index: Index, row: int) -> str:
    """The member key of a row, 32 hexadecimal digits."""
    return bytes(index["key"][row]).ljust(16, b"\0").hex()
