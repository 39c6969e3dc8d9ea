"""The columnar index of a manifest: 40 bytes a sample, mapped into memory as it lies."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.receipt import Receipt

INDEX_DTYPE = np.dtype(
    [
        ("key", "S16"),  # the member key's 16 bytes
        ("offset", "<u8"),  # bytes into the shard
        ("xxh3", "<u8"),  # of the sample's stretch
        ("shard", "<u4"),  # position in the manifest's list of shards
        ("size", "<u4"),  # bytes
    ]
)
assert INDEX_DTYPE.itemsize == 40, "the index format is 40 bytes a sample"


def build_index(receipts: Sequence[Receipt]) -> NDArray[np.void]:
    """One row a sample, shard after shard, key order within a shard."""
    index = np.empty(sum(len(receipt.samples) for receipt in receipts), dtype=INDEX_DTYPE)
    row = 0
    for number, receipt in enumerate(receipts):
        for span in receipt.samples:
            index[row] = (bytes.fromhex(span.key), span.offset, int(span.xxh3, 16), number, span.size)
            row += 1
    return index


def member_key(index: NDArray[np.void], row: int) -> str:
    """The member key of a row, 32 hexadecimal digits."""
    # NumPy's S type drops zero bytes at the end, which a hash may well have.
    return bytes(index["key"][row]).ljust(16, b"\0").hex()
