"""The loader: batches from a cache's shards by ranged GETs, in an order fixed by (seed, epoch)."""

from collections.abc import Generator, Iterator
from contextlib import closing
from functools import cached_property
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.cache.entry import Entry
from pipeline.cache.manifest import Manifest
from pipeline.cache.sample_reading import CorruptSample, StretchStore
from pipeline.loading.batch import Batch
from pipeline.loading.batch_plan import BatchPlan, SampleRun
from pipeline.loading.batch_reading import BatchReader, LoadedBatch, OnCorrupt, RunReader
from pipeline.loading.corrupt_tally import CorruptTally
from pipeline.loading.mapped_index import map_column_indexes, map_index
from pipeline.loading.sample_order import PADDING, Position, Remainder, SampleOrder, contiguous_runs
from pipeline.loading.worker_processes import PlannedBatches, WorkerProcesses
from pipeline.object_store.store import ObjectStore

_LARGEST_GET: Final = 32 << 20  # bytes; longer runs are several requests, side by side
_SPARES: Final = 16


class SampleReader:
    """Reads samples of a manifest by index row; every byte is checked by its xxh3-64."""

    def __init__(self, *, store: ObjectStore, manifest: Manifest, nearer: StretchStore | None = None) -> None:
        """Map the index into memory.

        Args:
            store: the cache.
            manifest: of the set.
            nearer: looked into before the store, such as a `LocalCache`.

        Raises:
            OSError: the index is gone or damaged.
        """
        self.store, self.manifest, self.nearer = store, manifest, nearer
        self.index = map_index(store, manifest)
        self._columns = map_column_indexes(store, manifest)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Whose features are read."""
        return self.manifest.spec.features.blocks

    def runs(self, *, on_corrupt: OnCorrupt = "fail") -> RunReader:
        """What reads runs in this process."""
        return RunReader(store=self.store, blocks=self.blocks, nearer=self.nearer, on_corrupt=on_corrupt)

    def run(self, rows: NDArray[np.int64]) -> SampleRun:
        """Neighbouring rows of one shard, as something to read."""
        shard = self.manifest.shards[int(self.index["shard"][rows[0]])]
        columns = self._columns[: len(shard.columns)]
        return SampleRun(
            shard=shard, rows=self.index[rows], column_rows=tuple(column[rows] for column in columns)
        )

    def read_run(self, rows: NDArray[np.int64]) -> list[Entry]:
        """Neighbouring rows of one shard in one ranged GET, and one for each column of further blocks."""
        return self.runs().read_all(self.run(rows))

    def plan(self, rows: NDArray[np.int64]) -> BatchPlan:
        """A batch of these rows, `PADDING` among them."""
        runs = [self.run(run) for run in contiguous_runs(rows[rows != PADDING], self.index["shard"])]
        return BatchPlan(
            size=len(rows),
            runs=tuple(part for run in runs for part in run.parts(most=_LARGEST_GET)),
        )

    def spares(self) -> tuple[SampleRun, ...]:
        """Single samples from all over the set: any gives a batch its shapes in which nothing can be read."""
        rows = np.unique(np.linspace(0, len(self.index) - 1, _SPARES, dtype=np.int64))
        return tuple(self.run(rows[place : place + 1]) for place in range(len(rows)))


class CacheLoader:
    """Batches for one rank. Every rank gets the same number; together they cover each sample once an epoch.

    With several draws in the cache, a shuffled epoch `e` reads draw `e mod K`, an unshuffled one draw 0.
    """

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
        ahead_bytes: int = 1 << 30,
        processes: int = 0,
        on_corrupt: OnCorrupt = "fail",
        max_corrupt_share: float = 0.0,
    ) -> None:
        """Reads nothing yet.

        Args:
            reader: of the set's samples.
            batch_size: over all ranks.
            rank: this one.
            ranks: their number.
            seed: of the order.
            window: neighbours that an epoch keeps together, fetched by one ranged GET.
            shuffle: for training; else the order of storage.
            remainder: what becomes of the last samples, too few for a batch.
            concurrency: ranged GETs in flight.
            batches_ahead: read while one is being trained on.
            ahead_bytes: of them all; a batch is read even where it alone is larger.
            processes: that read and decode; 0: threads of this one.
            on_corrupt: `skip` gives samples that cannot be read weight 0.
            max_corrupt_share: of this rank's samples of an epoch; more of them stop it.

        Raises:
            ValueError: the batch does not divide among the ranks.
        """
        if batch_size % ranks:
            raise ValueError(f"the global batch of {batch_size} does not divide among {ranks} ranks")
        self._reader, self._rank, self._ranks = reader, rank, ranks
        self._order = SampleOrder.of(
            reader.manifest.shards,
            batch_size=batch_size,
            seed=seed,
            window=window,
            shuffle=shuffle,
            remainder=remainder,
        )
        self._concurrency, self._processes = concurrency, processes
        self._batches_ahead, self._ahead_bytes = batches_ahead, ahead_bytes
        self._on_corrupt, self._max_corrupt_share = on_corrupt, max_corrupt_share
        self.skipped: dict[str, CorruptSample] = {}  # samples that could not be read, by key; of all epochs

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._order)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Index rows in the order of an epoch, over all ranks."""
        return self._order.rows(epoch)

    def epoch(self, position: Position) -> Iterator[Batch]:
        """The rest of an epoch from a position: fetched ahead, handed out in order.

        Raises:
            CorruptSampleError: a sample cannot be read, or too many where they are skipped.
        """
        rank_samples = -(-self._order.samples_in(position.epoch) // self._ranks)
        tally = CorruptTally(samples=rank_samples, most_share=self._max_corrupt_share)
        shares = self._order.shares(position, rank=self._rank, ranks=self._ranks)
        with closing(self._loaded(map(self._reader.plan, shares))) as loaded:
            for one in loaded:
                if one.corrupt:
                    self.skipped |= {sample.key: sample for sample in one.corrupt}
                    tally.add(one.corrupt)
                yield one.batch

    def close(self) -> None:
        """End worker processes, which else wait for the next epoch."""
        if self._processes and "_workers" in self.__dict__:
            self._workers.close()

    def _loaded(self, plans: Iterator[BatchPlan]) -> Generator[LoadedBatch, None, None]:
        if self._processes:
            return self._workers.batches(plans)
        most = self._batches_ahead
        return self._batches.read_ahead(plans, most_batches=most, most_bytes=self._ahead_bytes)

    @cached_property
    def _batches(self) -> BatchReader:
        return BatchReader(
            self._reader.runs(on_corrupt=self._on_corrupt),
            threads=self._concurrency,
            spares=self._reader.spares(),
            batches_ahead=self._batches_ahead,
            place="pinned" if torch.cuda.is_available() else "own",
        )

    @cached_property
    def _workers(self) -> WorkerProcesses:
        batches = PlannedBatches(
            url=self._reader.store.url,
            blocks=self._reader.blocks,
            nearer=self._reader.nearer,
            on_corrupt=self._on_corrupt,
            spares=self._reader.spares(),
            threads=-(-self._concurrency // self._processes),
            sharing=self._processes * self._ranks,
        )
        return WorkerProcesses(batches, processes=self._processes, batches_ahead=self._fitting_batches())

    def _fitting_batches(self) -> int:
        """Batches ahead, as far as their bytes allow."""
        samples = self._order.batch_size // self._ranks
        sample_bytes = self._reader.manifest.size / max(1, self._reader.manifest.samples)
        return max(1, min(self._batches_ahead, int(self._ahead_bytes / max(1.0, samples * sample_bytes))))
