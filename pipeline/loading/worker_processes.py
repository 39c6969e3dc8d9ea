"""Batches read and decoded in processes of their own, by `torch.utils.data`."""

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import torch
from torch.utils.data import DataLoader, Dataset

from ldznet.errors import FinalError, UserError
from pipeline.cache.sample_reading import StretchStore
from pipeline.loading.batch_plan import BatchPlan, SampleRun
from pipeline.loading.batch_reading import BatchReader, LoadedBatch, OnCorrupt, RunReader
from pipeline.object_store.opening import open_store

_START: Final = "spawn"  # a fork would copy locks that threads of Ray, boto3 and torch hold


class PlannedBatches(Dataset["LoadedBatch | UserError | FinalError"]):
    """Batches by their plan. What goes to a process is the store's URL; credentials it has from its environment.

    A plan tells where samples lie, so that no process needs the index or the order of its own.
    """

    def __init__(
        self,
        *,
        url: str,
        blocks: tuple[int, ...],
        nearer: StretchStore | None,
        on_corrupt: OnCorrupt,
        spares: tuple[SampleRun, ...],
        threads: int,
        sharing: int,
    ) -> None:
        """Opens nothing.

        Args:
            url: of the store.
            blocks: whose features to read.
            nearer: a nearer place for samples.
            on_corrupt: `fail` or `skip`.
            spares: any samples.
            threads: ranged GETs in flight a process.
            sharing: processes of all ranks together that ask the store.
        """
        self._url, self._blocks, self._nearer = url, blocks, nearer
        self._on_corrupt, self._spares, self._threads, self._sharing = on_corrupt, spares, threads, sharing
        self._opened: tuple[BatchReader, ThreadPoolExecutor] | None = None

    def __getitem__(self, plan: BatchPlan) -> "LoadedBatch | UserError | FinalError":
        """The batch, in the worker process; or what is to be told in a line, which torch would make a traceback."""
        try:
            if self._opened is None:
                self._opened = self._open()
            reader, pool = self._opened
            return reader.read(plan, pool)
        except (UserError, FinalError) as error:
            return error

    def _open(self) -> tuple[BatchReader, ThreadPoolExecutor]:
        runs = RunReader(
            store=open_store(self._url, sharing=self._sharing),
            blocks=self._blocks,
            nearer=self._nearer,
            on_corrupt=self._on_corrupt,
        )
        # Where `torch.utils.data` would copy them to on their way out of this process.
        reader = BatchReader(runs, threads=self._threads, spares=self._spares, place="shared")
        return reader, ThreadPoolExecutor(self._threads, "loader")


class _Plans:
    """The sampler: the plans of the epoch that is about to begin."""

    def __init__(self) -> None:
        self.next: Iterable[BatchPlan] = ()

    def __iter__(self) -> Iterator[BatchPlan]:
        return iter(self.next)


class WorkerProcesses:
    """Processes that give batches in order. They live from the first batch until `close`, or an epoch left early."""

    def __init__(self, batches: PlannedBatches, *, processes: int, batches_ahead: int) -> None:
        """Starts nothing.

        Args:
            batches: what they do.
            processes: their number, 1 or more.
            batches_ahead: on their way or ready, of all processes together; at least one each.
        """
        self._plans = _Plans()
        self._loader: DataLoader[LoadedBatch | UserError | FinalError] = DataLoader(
            batches,
            sampler=self._plans,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=processes,
            prefetch_factor=max(1, batches_ahead // processes),
            multiprocessing_context=_START,
            persistent_workers=True,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # of its own: the training's must not depend on how batches are read
        )

    def batches(self, plans: Iterable[BatchPlan]) -> Generator[LoadedBatch, None, None]:
        """An epoch. Left early, by closing it or by an error, it ends the processes."""
        self._plans.next = plans
        whole = False
        try:
            for batch in self._loader:
                if isinstance(batch, UserError | FinalError):
                    raise batch
                yield batch
            whole = True
        finally:
            if not whole:
                self.close()

    def close(self) -> None:
        """End the processes. The next epoch starts new ones."""
        running, self._loader._iterator = self._loader._iterator, None  # noqa: SLF001 - torch has no call for it
        if running is not None:
            end_workers(running)


def end_workers(running: Any) -> None:
    """End the processes of a `torch.utils.data` iterator. torch has no call for it, only the hooks of its own end.

    A process that has to leave while it hands over a batch may abort: Python ends its daemon thread in the middle of
    torch's C++ ("terminate called without an active exception"). From here on that is no fault, so torch, which raises
    it wherever the main thread is, is told first that it has no such process.
    """
    if running._worker_pids_set:  # noqa: SLF001
        torch._C._remove_worker_pids(id(running))  # noqa: SLF001
        running._worker_pids_set = False  # noqa: SLF001
    running._shutdown_workers()  # noqa: SLF001


def _as_it_is(batch: Any) -> Any:
    return batch
