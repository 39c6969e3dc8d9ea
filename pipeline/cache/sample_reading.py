"""Samples read from a shard by ranges, every byte checked by its xxh3-64."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import xxhash

from pipeline.cache.committed_shard import ShardReference
from pipeline.cache.entry import Entry, decode_columns, decode_entry, split_tar
from pipeline.cache.index import Index, member_key
from pipeline.object_store.store import ObjectStore


class CorruptSampleError(OSError):
    """A sample's bytes are not those that its receipt vouches for."""


def read_samples(
    store: ObjectStore,
    shard: ShardReference,
    *,
    rows: Index,
    column_rows: Sequence[Index] = (),
    blocks: Collection[int] | None = None,
) -> list[Entry]:
    """Neighbouring samples of a shard in one ranged GET, and one for each of its columns.

    Args:
        store: the cache.
        shard: where they lie.
        rows: their rows of the index, neighbours in the shard.
        column_rows: the same samples' rows of the columns' indexes.
        blocks: features to read; None: all.

    Raises:
        CorruptSampleError: names the sample and its shard; bytes that fail their check were read twice by then.
    """
    stretches = _read_stretches(store, shard.object_key, rows)
    with _told_of(store, shard):
        entries = [
            decode_entry(key, split_tar(stretch, key=key), blocks=blocks) for key, stretch in stretches
        ]
    for column, there in zip(shard.columns, column_rows, strict=False):
        stretches = _read_stretches(store, column.object_key, there)
        with _told_of(store, column):
            entries = [
                _with_column(entry, split_tar(stretch, key=key), blocks)
                for entry, (key, stretch) in zip(entries, stretches, strict=True)
            ]
    return entries if blocks is None else [_with_blocks(entry, blocks) for entry in entries]


@contextmanager
def _told_of(store: ObjectStore, shard: ShardReference) -> Iterator[None]:
    """Sound bytes that are no sample of ours: somebody else wrote them."""
    try:
        yield
    except ValueError as error:
        raise CorruptSampleError(
            f"{store.url}/{shard.object_key} holds what is no sample: {error}"
        ) from error


def _with_column(entry: Entry, files: dict[str, memoryview], blocks: Collection[int] | None) -> Entry:
    features, scales = decode_columns(files, blocks=blocks)
    return replace(entry, features=entry.features | features, scales=entry.scales | scales)


def _with_blocks(entry: Entry, blocks: Collection[int]) -> Entry:
    absent = sorted(set(blocks) - set(entry.features))
    if absent:
        raise CorruptSampleError(
            f"sample {entry.key} lacks the features of block {absent[0]}, which its manifest promises"
        )
    return replace(
        entry,
        features={block: entry.features[block] for block in sorted(blocks)},
        scales={block: entry.scales[block] for block in sorted(blocks) if block in entry.scales},
    )


def _read_stretches(store: ObjectStore, object_key: str, rows: Index) -> list[tuple[str, memoryview]]:
    start = int(rows[0]["offset"])
    length = int(rows[-1]["offset"]) + int(rows[-1]["size"]) - start
    bad = ""
    for _ in range(2):  # a bit that flipped on its way is right the second time
        try:
            data = memoryview(store.get_range(object_key, start=start, length=length))
        except KeyError as error:
            raise CorruptSampleError(
                f"the shard {store.url}/{object_key} is gone, which the manifest names: restore it, or run "
                "`ldznet precompute --repair` with its recipe"
            ) from error
        stretches = list(_stretches(data, rows, start))
        bad = next((key for key, stretch, digest in stretches if not _sound(stretch, digest)), "")
        if not bad:
            return [(key, stretch) for key, stretch, _ in stretches]
    raise CorruptSampleError(
        f"sample {bad} in {store.url}/{object_key} is not what its receipt vouches for: "
        "`ldznet cache verify` tells how far it goes, `ldznet precompute --repair` mends it"
    )


def _stretches(data: memoryview, rows: Index, start: int) -> Iterator[tuple[str, memoryview, int]]:
    for row in range(len(rows)):
        offset, size = int(rows["offset"][row]) - start, int(rows["size"][row])
        yield member_key(rows, row), data[offset : offset + size], int(rows["xxh3"][row])


def _sound(stretch: memoryview, digest: int) -> bool:
    return xxhash.xxh3_64_intdigest(stretch) == digest
