"""The loader: batches from a cache's shards by ranged GETs, in an order fixed by (seed, epoch)."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.entry import Entry
from pipeline.cache.manifest import Manifest, read_column_indexes, read_index
from pipeline.cache.sample_reading import read_samples
from pipeline.loading.batch import Batch
from pipeline.loading.collate import collate
from pipeline.loading.sample_order import (
    PADDING,
    Position,
    Remainder,
    batches_in_epoch,
    contiguous_runs,
    epoch_order,
    rank_share,
)
from pipeline.object_store.store import ObjectStore


class SampleReader:
    """Reads samples of a manifest by index row; every byte is checked by its xxh3-64."""

    def __init__(self, *, store: ObjectStore, manifest: Manifest) -> None:
        self.store = store
        self.manifest = manifest
        self.index = read_index(store, manifest)
        self._columns = read_column_indexes(store, manifest)

    def read_run(self, rows: NDArray[np.int64]) -> list[Entry]:
        """Neighbouring rows of one shard in one ranged GET, and one for each column of further blocks."""
        shard = self.manifest.shards[int(self.index["shard"][rows[0]])]
        return read_samples(
            self.store,
            shard,
            rows=self.index[rows],
            column_rows=[column[rows] for column in self._columns[: len(shard.columns)]],
            blocks=self.manifest.spec.features.blocks,
        )


class CacheLoader:
    """Batches for one rank. Every rank gets the same number; together they cover each sample once an epoch."""

    def __init__(
        self,
        *,
        reader: SampleReader,
        batch_size: int,
        rank: int = 0,
        ranks: int = 1,
        seed: int = 0,
        window: int = 8,
        shuffle: bool = True,
        remainder: Remainder = "drop",
        concurrency: int = 8,
        batches_ahead: int = 4,
    ) -> None:
        if batch_size % ranks:
            raise ValueError(f"the global batch of {batch_size} does not divide among {ranks} ranks")
        self._reader = reader
        self._batch_size, self._rank, self._ranks = batch_size, rank, ranks
        self._seed, self._window, self._shuffle = seed, window, shuffle
        self._remainder = remainder
        self._concurrency, self._batches_ahead = concurrency, batches_ahead

    def __len__(self) -> int:
        """Batches in an epoch."""
        samples = len(self._reader.index)
        return batches_in_epoch(samples, batch_size=self._batch_size, remainder=self._remainder)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Index rows in the order of an epoch, over all ranks."""
        if not self._shuffle:
            return np.arange(len(self._reader.index))
        sizes = np.array([shard.samples for shard in self._reader.manifest.shards], np.int64)
        return epoch_order(sizes, seed=self._seed, epoch=epoch, window=self._window)

    def epoch(self, position: Position) -> Iterator[Batch]:
        """The rest of an epoch from a position: fetched ahead, handed out in order."""
        order = self.order(position.epoch)
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="loader") as pool:
            ahead: deque[tuple[NDArray[np.int64], list[Future[list[Entry]]]]] = deque()
            try:
                for batch in range(position.batch, len(self)):
                    rows = rank_share(
                        order, batch=batch, batch_size=self._batch_size, rank=self._rank, ranks=self._ranks
                    )
                    runs = contiguous_runs(rows[rows != PADDING], self._reader.index["shard"])
                    ahead.append((rows, [pool.submit(self._reader.read_run, run) for run in runs]))
                    if len(ahead) > self._batches_ahead:
                        yield self._collect(*ahead.popleft())
                while ahead:
                    yield self._collect(*ahead.popleft())
            finally:
                for _, futures in ahead:
                    for future in futures:
                        future.cancel()

    def _collect(self, rows: NDArray[np.int64], futures: Sequence[Future[list[Entry]]]) -> Batch:
        entries = [entry for future in futures for entry in future.result()]
        if not entries:  # a share of nothing but padding: any sample stands in, with weight 0
            entries = self._reader.read_run(np.array([0]))
            return collate(entries, size=len(rows), samples=0)
        return collate(entries, size=len(rows), samples=len(entries))
