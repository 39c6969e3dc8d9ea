"""Runs of samples read straight into their rows of a batch: one copy from the store's hands, every byte checked.

The samples of a cache differ in their tensors' values, seldom in their layout. Once one has been read, the tensors of
others are read to where they belong, the rest of a sample to the side; then the sample's checksum is taken over all
of it, and what came to the side must say what was foreseen. Whatever is not as foreseen (another layout, damage, an
object that is gone) is read the plain way, which tells what is wrong.
"""

import errno
import threading
from collections.abc import Callable, Sequence

import numpy as np
import xxhash

from pipeline.cache.committed_shard import ShardReference
from pipeline.cache.entry import Entry, decode_rest, split_head, split_tar, tail_bytes
from pipeline.cache.index import Index, member_key
from pipeline.cache.sample_reading import CorruptSample, CorruptSampleError, StretchStore
from pipeline.cache.tensor_file import TensorLayout, read_layout
from pipeline.loading.batch_buffer import BatchBuffer, BatchForm
from pipeline.loading.batch_plan import SampleRun
from pipeline.object_store.store import ObjectStore

PlainRead = Callable[[SampleRun, StretchStore], tuple[list[Entry], list[CorruptSample]]]
_Head = tuple[str, memoryview]  # a sample's key, and its stretch up to the content of its tensors
_Pieces = list[memoryview]


class RunFiller:
    """Fills rows of batches. Shared by threads; what it learns of layouts holds for all."""

    def __init__(
        self,
        *,
        store: ObjectStore,
        read_plainly: PlainRead,
        nearer: StretchStore | None = None,
        skip: bool = False,
    ) -> None:
        """Over one cache.

        Args:
            store: the cache.
            read_plainly: reads a run as entries, through the nearer place that it is given.
            nearer: looked into first; what is missing there is fetched, and kept there.
            skip: samples of another form than their batch are told instead of raised.
        """
        self._store, self._read_plainly, self._nearer, self._skip = store, read_plainly, nearer, skip
        self.example: Entry | None = None  # any sample that was read
        self._form: BatchForm | None = None
        self._layouts: dict[str, TensorLayout] = {}  # by the specification of the shard
        self._learning = threading.Lock()

    def fill(self, run: SampleRun, buffer: BatchBuffer, *, first: int) -> list[CorruptSample]:
        """Read a run into the rows from `first` on. Those of samples that cannot be read stay missing.

        Raises:
            CorruptSampleError: a sample cannot be read, or is of another form, and is not skipped.
        """
        if self._fill(run, buffer, first):
            return []
        buffer.clear(range(first, first + len(run.rows)))
        witness = _Witness(self._nearer)
        entries, corrupt = self._read_plainly(run, witness)
        for row, entry in enumerate(entries, first):
            try:
                buffer.put(row, entry)
            except ValueError as error:
                reason = f"{self._store.url}/{run.shard.object_key}: {error}"
                if not self._skip:
                    raise CorruptSampleError(reason) from error
                sample = CorruptSample(key=entry.key, object_key=run.shard.object_key, reason=reason)
                corrupt = [*corrupt, sample]
        if entries:
            self._learn(entries[0], witness)
        return corrupt

    def _learn(self, entry: Entry, witness: "_Witness") -> None:
        with self._learning:
            for shard, key, stretch in witness.seen.values():
                files = split_tar(stretch, key=key)
                self._layouts.setdefault(shard.cache_key, read_layout(files["safetensors"]))
            self.example = entry
            self._form = self._form or BatchForm.of(entry)

    def _fill(self, run: SampleRun, buffer: BatchBuffer, first: int) -> bool:
        """Whether all went as foreseen; else the rows hold anything."""
        form = self._form
        columns = list(zip(run.shard.columns, run.column_rows, strict=False))
        layouts = [self._layouts.get(shard.cache_key) for shard in (run.shard, *(one for one, _ in columns))]
        known = [layout for layout in layouts if layout is not None]
        if form is None or len(known) < len(layouts) or not _give(known, form) or not buffer.take_form(form):
            return False
        parts = [(run.shard, run.rows), *columns]
        heads = []
        for (shard, rows), layout in zip(parts, known, strict=True):
            pieces = _pieces(rows, layout, form, buffer, first)
            if pieces is None or not self._read(shard, rows, pieces):
                return False
            heads.append([(member_key(rows, number), one[0]) for number, one in enumerate(pieces)])
        return _finish(heads, known, buffer, first)

    def _read(self, shard: ShardReference, rows: Index, pieces: Sequence[_Pieces]) -> bool:
        """Fill the pieces of each sample; whether every byte is what the receipts vouch for."""
        missing = np.arange(len(rows))
        if self._nearer is not None:
            absent = [n for n, into in enumerate(pieces) if not self._found(shard, rows[n], into)]
            missing = np.array(absent, np.int64)
        gaps = np.split(missing, np.flatnonzero(np.diff(missing) != 1) + 1)
        return all(self._fetch(shard, rows[gap], [pieces[int(n)] for n in gap]) for gap in gaps if len(gap))

    def _found(self, shard: ShardReference, row: np.void, pieces: _Pieces) -> bool:
        stretch = None if self._nearer is None else self._nearer.read(shard, row)
        if stretch is None:
            return False
        for piece in pieces:
            piece[:], stretch = stretch[: len(piece)], stretch[len(piece) :]
        return True

    def _fetch(self, shard: ShardReference, rows: Index, pieces: Sequence[_Pieces]) -> bool:
        """Neighbouring stretches by one ranged GET."""
        into = [piece for one in pieces for piece in one]
        try:
            self._store.get_range_into(shard.object_key, start=int(rows["offset"][0]), buffers=into)
        except KeyError:
            return False
        except OSError as error:
            if type(error) is OSError and error.errno == errno.EIO:  # the shard ends before
                return False
            raise
        if not all(_digest(one) == digest for one, digest in zip(pieces, rows["xxh3"].tolist(), strict=True)):
            return False
        if self._nearer is not None:
            for one, row in zip(pieces, rows, strict=True):
                self._nearer.write(shard, row, memoryview(b"".join(one)))
        return True


class _Witness:
    """A nearer place that remembers a sample of each shard that was read through it."""

    def __init__(self, nearer: StretchStore | None) -> None:
        self._nearer = nearer
        self.seen: dict[str, tuple[ShardReference, str, memoryview]] = {}  # by the shard's object

    def read(self, shard: ShardReference, row: np.void) -> memoryview | None:
        stretch = None if self._nearer is None else self._nearer.read(shard, row)
        if stretch is not None:
            self._remember(shard, row, stretch)
        return stretch

    def write(self, shard: ShardReference, row: np.void, stretch: memoryview) -> None:
        self._remember(shard, row, stretch)
        if self._nearer is not None:
            self._nearer.write(shard, row, stretch)

    def _remember(self, shard: ShardReference, row: np.void, stretch: memoryview) -> None:
        self.seen.setdefault(shard.object_key, (shard, member_key(np.array([row]), 0), stretch))


def _give(layouts: Sequence[TensorLayout], form: BatchForm) -> bool:
    """Whether samples of these layouts together have all tensors of a form, each of its type and shape."""
    given = [
        (name, (span.dtype, span.shape))
        for layout in layouts
        for name, span in layout.spans
        if name in form.tensors
    ]
    return dict(given) == form.tensors and all(form.tensors[name] == kind for name, kind in given)


def _pieces(
    rows: Index, layout: TensorLayout, form: BatchForm, buffer: BatchBuffer, first: int
) -> list[_Pieces] | None:
    """Where the bytes of each sample's stretch go: the head to the side, tensors to their row, padding to the side.

    None where the stretches cannot be such.
    """
    offsets, sizes = rows["offset"].astype(np.int64), rows["size"].astype(np.int64)
    heads = sizes - tail_bytes(layout)
    if (offsets[1:] != offsets[:-1] + sizes[:-1]).any() or (heads < len(layout.header)).any():
        return None
    unwanted = sum(span.stop - span.start for name, span in layout.spans if name not in form.tensors)
    padding = tail_bytes(layout) - layout.content_bytes
    aside = np.empty(int(heads.sum()) + len(rows) * (unwanted + padding), np.uint8).data

    def take(size: int) -> memoryview:
        nonlocal aside
        taken, aside = aside[:size], aside[size:]
        return taken

    return [
        [
            take(head),
            *(
                buffer.place(row, name) if name in form.tensors else take(span.stop - span.start)
                for name, span in layout.spans
            ),
            take(padding),
        ]
        for row, head in enumerate(heads.tolist(), first)
    ]


def _digest(pieces: _Pieces) -> int:
    hasher = xxhash.xxh3_64()
    for piece in pieces:
        hasher.update(piece)
    return hasher.intdigest()


def _finish(
    heads: Sequence[Sequence[_Head]], layouts: Sequence[TensorLayout], buffer: BatchBuffer, first: int
) -> bool:
    """Fill what is no tensor; whether the heads of shard and columns say what was foreseen."""
    try:
        files = [
            [split_head(head, key=key, tensors=layout) for key, head in part]
            for part, layout in zip(heads, layouts, strict=True)
        ]
        if any(one is None for part in files for one in part):
            return False
        for row, ((key, _), one) in enumerate(zip(heads[0], files[0], strict=True), first):
            if one is None or not {"json", "mask.png"} <= set(one):
                return False
            if not buffer.finish(row, key=key, rest=decode_rest(one)):
                return False
    except ValueError:  # sound bytes that are no sample of ours
        return False
    return True
