"""From a batch's plan to the batch: its runs read side by side, each into its rows; pinned where there is a GPU."""

import os
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from pipeline.cache.entry import Entry
from pipeline.cache.sample_reading import (
    CorruptSample,
    CorruptSampleError,
    StretchStore,
    read_samples,
    read_sound_samples,
)
from pipeline.loading.batch import Batch
from pipeline.loading.batch_buffer import BatchBuffer
from pipeline.loading.batch_plan import BatchPlan, SampleRun
from pipeline.loading.reused_memory import Place, ReusedMemory
from pipeline.loading.run_filling import RunFiller
from pipeline.object_store.files import FileStore
from pipeline.object_store.store import ObjectStore

OnCorrupt = Literal["fail", "skip"]
RunRead = tuple[list[Entry], list[CorruptSample]]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedBatch:
    """A batch, and the samples that are missing in it: padding stands in their place, at its end."""

    batch: Batch
    corrupt: tuple[CorruptSample, ...] = ()

    def pin_memory(self) -> "LoadedBatch":
        """In pinned memory: `torch.utils.data` calls it by this name."""
        return LoadedBatch(batch=self.batch.pin_memory(), corrupt=self.corrupt)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunReader:
    """Reads runs of samples, every byte checked."""

    store: ObjectStore
    blocks: tuple[int, ...]
    nearer: StretchStore | None = None
    on_corrupt: OnCorrupt = "fail"

    def read(self, run: SampleRun) -> RunRead:
        """The samples of a run, and those of them that cannot be read.

        Raises:
            CorruptSampleError: there is one of the latter, and `on_corrupt` is `fail`.
        """
        if self.on_corrupt == "fail":
            return self.read_all(run), []
        return read_sound_samples(
            self.store,
            run.shard,
            rows=run.rows,
            column_rows=run.column_rows,
            blocks=self.blocks,
            nearer=self.nearer,
        )

    def read_all(self, run: SampleRun) -> list[Entry]:
        """The samples of a run, all of them."""
        return read_samples(
            self.store,
            run.shard,
            rows=run.rows,
            column_rows=run.column_rows,
            blocks=self.blocks,
            nearer=self.nearer,
        )


class BatchReader:
    """Reads whole batches: threads read runs, each straight into its rows of a batch."""

    def __init__(
        self,
        runs: RunReader,
        *,
        threads: int,
        spares: Sequence[SampleRun] = (),
        batches_ahead: int = 4,
        place: Place = "own",
    ) -> None:
        """Starts nothing.

        Args:
            runs: what reads runs the plain way: the first ones, and those with something wrong.
            threads: runs read at once, at most.
            spares: any samples, for a share without one that can be read before another was.
            batches_ahead: whose memory is kept for later ones.
            place: which memory batches go into.
        """
        # From files, reading is copying: more threads than cores only wait for one another.
        local = isinstance(runs.store, FileStore)
        self._threads = min(threads, max(2, len(os.sched_getaffinity(0)))) if local else threads
        self._spares = spares
        self._memory = ReusedMemory(most=batches_ahead + 2, place=place)
        self._filler = RunFiller(
            store=runs.store,
            nearer=runs.nearer,
            skip=runs.on_corrupt == "skip",
            read_plainly=lambda run, nearer: replace(runs, nearer=nearer).read(run),
        )

    def read(self, plan: BatchPlan, pool: ThreadPoolExecutor) -> LoadedBatch:
        """One batch, now."""
        return self._collect(self._begin(plan, pool))

    def read_ahead(
        self, plans: Iterable[BatchPlan], *, most_batches: int, most_bytes: int
    ) -> Generator[LoadedBatch, None, None]:
        """Batches in order, fetched ahead while they are few and small enough; one at least is always on its way.

        Closing the iterator ends its threads.
        """
        pending: deque[_Pending] = deque()
        with ThreadPoolExecutor(self._threads, thread_name_prefix="loader") as pool:
            try:
                for plan in plans:
                    while pending and (
                        len(pending) > most_batches
                        or sum(one.plan.bytes for one in pending) + plan.bytes > most_bytes
                    ):
                        yield self._collect(pending.popleft())
                    pending.append(self._begin(plan, pool))
                while pending:
                    yield self._collect(pending.popleft())
            finally:
                for one in pending:
                    one.cancel()

    def _begin(self, plan: BatchPlan, pool: ThreadPoolExecutor) -> "_Pending":
        buffer = BatchBuffer(size=plan.size, memory=self._memory)
        firsts = accumulate((len(run.rows) for run in plan.runs), initial=0)
        reads = [
            pool.submit(self._filler.fill, run, buffer, first=first)
            for run, first in zip(plan.runs, firsts, strict=False)
        ]
        return _Pending(plan=plan, buffer=buffer, reads=reads)

    def _collect(self, pending: "_Pending") -> LoadedBatch:
        corrupt = tuple(sample for read in pending.reads for sample in read.result())
        samples = pending.buffer.samples
        if not samples:
            self._stand_in(pending.buffer, corrupt)
        return LoadedBatch(batch=pending.buffer.batch(samples=samples), corrupt=corrupt)

    def _stand_in(self, buffer: BatchBuffer, corrupt: Sequence[CorruptSample]) -> None:
        """Any sample, for a share of nothing but padding, or of nothing that can be read."""
        if self._filler.example is not None:
            buffer.put(0, self._filler.example)
            return
        for spare in self._spares:
            corrupt = (*corrupt, *self._filler.fill(spare, buffer, first=0))
            if buffer.samples:
                return
        raise CorruptSampleError(f"no sample of a whole batch can be read; the first: {corrupt[0].reason}")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pending:
    """A batch on its way."""

    plan: BatchPlan
    buffer: BatchBuffer
    reads: Sequence[Future[list[CorruptSample]]]

    def cancel(self) -> None:
        """What has not begun does not begin."""
        for future in self.reads:
            future.cancel()
