"""Samples read from a shard by ranges, every byte checked by its xxh3-64."""

import errno
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import xxhash

from ldznet.errors import FinalError
from pipeline.cache.committed_shard import ShardReference
from pipeline.cache.entry import Entry, decode_columns, decode_entry, split_tar
from pipeline.cache.index import Index, member_key
from pipeline.object_store.store import ObjectStore


class CorruptSampleError(FinalError, OSError):
    """A sample's bytes are not those that its receipt vouches for."""


class StretchStore(Protocol):
    """A nearer place for samples' stretches of shards. It may forget any of them; it never gives other bytes."""

    def read(self, shard: ShardReference, row: np.void) -> memoryview | None:
        """A sample's stretch, checked against its row of the index; None where it is not there."""
        ...

    def write(self, shard: ShardReference, row: np.void, stretch: memoryview) -> None:
        """Keep a sound stretch, if there is room."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class CorruptSample:
    """A sample that could not be read, and why."""

    key: str
    object_key: str
    reason: str


def read_samples(
    store: ObjectStore,
    shard: ShardReference,
    *,
    rows: Index,
    column_rows: Sequence[Index] = (),
    blocks: Collection[int] | None = None,
    nearer: StretchStore | None = None,
) -> list[Entry]:
    """Neighbouring samples of a shard in one ranged GET, and one for each of its columns.

    Args:
        store: the cache.
        shard: where they lie.
        rows: their rows of the index, neighbours in the shard.
        column_rows: the same samples' rows of the columns' indexes.
        blocks: features to read; None: all.
        nearer: looked into first; what is missing there is fetched, each gap by one GET, and kept there.

    Raises:
        CorruptSampleError: names the sample and its shard; bytes that fail their check were read twice by then.
    """
    stretches = _read_stretches(store, shard, rows, nearer)
    with _told_of(store, shard):
        entries = [
            decode_entry(key, split_tar(stretch, key=key), blocks=blocks) for key, stretch in stretches
        ]
    for column, there in zip(shard.columns, column_rows, strict=False):
        stretches = _read_stretches(store, column, there, nearer)
        with _told_of(store, column):
            entries = [
                _with_column(entry, split_tar(stretch, key=key), blocks)
                for entry, (key, stretch) in zip(entries, stretches, strict=True)
            ]
    if blocks is None:
        return entries
    with _told_of(store, shard):
        return [_with_blocks(entry, blocks) for entry in entries]


def read_sound_samples(
    store: ObjectStore,
    shard: ShardReference,
    *,
    rows: Index,
    column_rows: Sequence[Index] = (),
    blocks: Collection[int] | None = None,
    nearer: StretchStore | None = None,
) -> tuple[list[Entry], list[CorruptSample]]:
    """Like `read_samples`; samples that cannot be read are told instead of raised. Faults of the store are raised."""

    def read(part: slice) -> list[Entry]:
        columns = [column[part] for column in column_rows]
        return read_samples(store, shard, rows=rows[part], column_rows=columns, blocks=blocks, nearer=nearer)

    try:
        return read(slice(None)), []
    except CorruptSampleError:
        entries: list[Entry] = []
        corrupt: list[CorruptSample] = []
        for row in range(len(rows)):  # one by one: which of them are hit
            try:
                entries += read(slice(row, row + 1))
            except CorruptSampleError as error:
                key = member_key(rows, row)
                corrupt.append(CorruptSample(key=key, object_key=shard.object_key, reason=str(error)))
        return entries, corrupt


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
        raise ValueError(
            f"the sample {entry.key} lacks the features of block {absent[0]}, which its manifest promises"
        )
    return replace(
        entry,
        features={block: entry.features[block] for block in sorted(blocks)},
        scales={block: entry.scales[block] for block in sorted(blocks) if block in entry.scales},
    )


def _read_stretches(
    store: ObjectStore, shard: ShardReference, rows: Index, nearer: StretchStore | None
) -> list[tuple[str, memoryview]]:
    keys = [member_key(rows, row) for row in range(len(rows))]
    if nearer is None:
        return list(zip(keys, _fetch(store, shard, rows), strict=True))
    found = [nearer.read(shard, row) for row in rows]
    missing = np.flatnonzero([stretch is None for stretch in found])
    for gap in np.split(missing, np.flatnonzero(np.diff(missing) != 1) + 1):
        if len(gap):
            for row, stretch in zip(gap, _fetch(store, shard, rows[gap]), strict=True):
                nearer.write(shard, rows[row], stretch)
                found[row] = stretch
    return [(key, stretch) for key, stretch in zip(keys, found, strict=True) if stretch is not None]


def _fetch(store: ObjectStore, shard: ShardReference, rows: Index) -> list[memoryview]:
    """The stretches of neighbouring rows by one ranged GET, each checked."""
    where = f"{store.url}/{shard.object_key}"
    mend = "`ldznet cache verify` tells how far it goes, `ldznet precompute --repair` mends it"
    start = int(rows[0]["offset"])
    length = int(rows[-1]["offset"]) + int(rows[-1]["size"]) - start
    bad: int | None = None
    for _ in range(2):  # a bit that flipped on its way is right the second time
        try:
            data = memoryview(store.get_range(shard.object_key, start=start, length=length))
        except KeyError as error:
            raise CorruptSampleError(
                f"the shard {where} is gone, which the manifest names: restore it, or run "
                "`ldznet precompute --repair` with its recipe"
            ) from error
        except OSError as error:
            if type(error) is not OSError or error.errno != errno.EIO:
                raise
            raise CorruptSampleError(
                f"the shard {where} cannot be read to its end: {error}: {mend}"
            ) from error
        stretches = list(_stretches(data, rows, start))
        bad = next(
            (n for n, (stretch, digest) in enumerate(stretches) if not is_sound(stretch, digest)), None
        )
        if bad is None:
            return [stretch for stretch, _ in stretches]
    assert bad is not None, "it was found twice"
    raise CorruptSampleError(
        f"sample {member_key(rows, bad)} in {where} is not what its receipt vouches for: {mend}"
    )


def _stretches(data: memoryview, rows: Index, start: int) -> Iterator[tuple[memoryview, int]]:
    for offset, size, digest in zip(
        rows["offset"].tolist(), rows["size"].tolist(), rows["xxh3"].tolist(), strict=True
    ):
        yield data[offset - start : offset - start + size], digest


def is_sound(stretch: memoryview, digest: int) -> bool:
    """Whether bytes are those that a receipt vouches for by this xxh3-64."""
    return xxhash.xxh3_64_intdigest(stretch) == digest
