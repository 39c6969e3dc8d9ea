"""Hands shards to Ray actors: each loads the frozen LDM once and computes whole shards, two at a time.

The pool is elastic. So many actors as would have a shard, up to the bound, are asked for at once: Ray places those for
which there is room, and the rest stay pending, where an autoscaler sees them and nodes that join take them up. A shard
goes only to an actor that runs, so pending ones hold nobody up. Who has nothing left to do is let go, and the node is
free. A lost worker's shards go to others (see `Dispatch`). Faults of the user (`UserError`) are never tried again.

Through Ray go plans and what was committed, some dozen bytes a sample; shards go from the actors to the store.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final

import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError

from ldznet.errors import UserError
from pipeline.cache.committed_shard import CommittedShard
from pipeline.precompute.dispatch import SHARDS_AT_ONCE, Dispatch
from pipeline.precompute.progress import Progress
from pipeline.precompute.watch import WorkerState
from pipeline.precompute.worker import (
    Refused,
    SetOfShards,
    ShardTask,
    ShardWorker,
    WorkerSetup,
    unpack_outcome,
)
from pipeline.recipe import CacheConfig

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = [
    "SHARDS_AT_ONCE",
    "Refused",
    "SetOfShards",
    "ShardTask",
    "ShardWorker",
    "WorkerSetup",
    "run_shards",
]

logger = logging.getLogger(__name__)

_POLL_S = 2.0  # workers are asked so often what they are at
_ASKED_AT_ONCE: Final = 100  # of them, in turn
_STARTING_S: Final = 30.0  # who is not there after so long found no room yet
_LONGEST_PAUSE_S: Final = 60.0  # before another worker is hired, where they die as they start
_LOST = (RayActorError, OutOfMemoryError, ObjectLostError)

Committed = tuple[ShardTask, CommittedShard]


def run_shards(
    tasks: Iterable[ShardTask],
    *,
    shards: int,
    setup: WorkerSetup,
    config: CacheConfig,
    progress: Progress | None = None,
) -> Iterator[Committed]:
    """Yield each task with its shard, as they are committed, in any order.

    Tasks are taken lazily: those in flight and one a worker are held, whatever their number.

    Args:
        tasks: shards to compute.
        shards: how many tasks there are.
        setup: what workers need to know.
        config: how many workers, on what, and how often a shard is tried.
        progress: told of every shard, and every few seconds what the workers are at.

    Raises:
        UserError: what a worker found to be the user's mistake, or the cluster has no room for the least of workers.
        RuntimeError: a shard lost its worker `config.attempts` times, or workers die as they start.
    """
    dispatch = Dispatch[_Worker](
        iter(tasks), shards=shards, workers=config.max_workers, attempts=config.attempts
    )
    pool = _Pool(setup=setup, config=config, dispatch=dispatch, progress=progress)
    try:
        pool.arrange()
        while dispatch.unfinished:
            yield from pool.heard()
            pool.look_round()
    finally:
        pool.dismiss()


@dataclass(kw_only=True, eq=False)
class _Worker:
    """An actor."""

    actor: Any
    hired: float
    there: bool = False
    state: WorkerState | None = None


@dataclass(kw_only=True)
class _Pool:
    """Actors, and what comes from them."""

    setup: WorkerSetup
    config: CacheConfig
    dispatch: Dispatch[_Worker]
    progress: Progress | None
    workers: dict[_Worker, None] = field(default_factory=dict)
    mail: SimpleQueue[Any] = field(default_factory=SimpleQueue)  # what to do with an answer, and the answer
    polled: float = field(default_factory=time.monotonic)
    to_ask: deque[_Worker] = field(default_factory=deque)
    starting: int = 0
    short_since: float | None = None
    died_starting: int = 0  # in a row
    hire_after: float = 0.0
    told: int = 0  # workers, the last time it was logged

    def heard(self) -> Iterator[Committed]:
        """Wait for a while; what was committed."""
        timeout = _POLL_S
        while True:
            try:
                answered, answer = self.mail.get(timeout=timeout)
            except Empty:
                return
            committed = answered(answer)
            self.arrange()
            if committed is not None:
                yield committed
            timeout = _POLL_S - (time.monotonic() - self.polled)
            if timeout <= 0 or not self.dispatch.unfinished:
                return

    def arrange(self) -> None:
        """Give everyone enough to do; hire where that pays, and let go whom nothing is left for."""
        while given := self.dispatch.give(starting=self.starting):
            self._send(*given)
        while (worker := self.dispatch.spare()) is not None:
            self._let_go(worker)
        while len(self.workers) < self.dispatch.wanted and time.monotonic() >= self.hire_after:
            self._hire()
        if len(self.workers) > self.dispatch.wanted:
            for worker in [each for each in self.workers if not each.there]:
                if len(self.workers) > self.dispatch.wanted:
                    self._let_go(worker)

    def _count_starting(self) -> None:
        """Workers that will be there soon; those that found no room for a while are not counted on."""
        late = time.monotonic() - _STARTING_S
        self.starting = sum(not worker.there and worker.hired > late for worker in self.workers)

    @cached_property
    def _class(self) -> Any:
        options: dict[str, Any] = {
            "num_cpus": self.config.cpus_per_worker,
            "num_gpus": self.config.gpus_per_worker,
            "max_concurrency": SHARDS_AT_ONCE,
        }
        if self.config.accelerator is not None:
            options["accelerator_type"] = self.config.accelerator
        return ray.remote(concurrency_groups={"state": 1})(ShardWorker).options(**options)

    def _hire(self) -> None:
        worker = _Worker(actor=self._class.remote(self.setup), hired=time.monotonic())
        self.workers[worker] = None
        self.starting += 1
        self._call(worker.actor.state.options(concurrency_group="state").remote(), self._joined, worker)

    def _let_go(self, worker: _Worker) -> None:
        ray.kill(worker.actor)
        del self.workers[worker]
        self.dispatch.left(worker)
        if not worker.there:
            self._count_starting()

    def _send(self, worker: _Worker, task: ShardTask) -> None:
        self._call(worker.actor.commit_packed.remote(task.pack()), self._committed, worker, task)

    def _call(self, reference: Any, answered: Callable[..., Committed | None], *context: Any) -> None:
        """Have an answer put into the mail with what is to be done about it: no wait over many references."""

        def arrived(answer: "Future[Any]") -> None:
            self.mail.put((lambda answer: answered(answer, *context), answer))

        reference.future().add_done_callback(arrived)

    def _joined(self, answer: "Future[Any]", worker: _Worker) -> None:
        if worker not in self.workers:  # let go meanwhile
            return
        try:
            worker.state = answer.result()
        except _LOST as error:
            self._let_go(worker)
            self.died_starting += 1
            pause = min(2.0**self.died_starting, _LONGEST_PAUSE_S)
            logger.warning("a worker died as it started (%s); the next is hired in %.0f s", error, pause)
            if self.died_starting > self.config.attempts and not self.dispatch.workers:
                raise RuntimeError(f"{self.died_starting} workers in a row died as they started") from error
            self.hire_after = time.monotonic() + pause
            return
        worker.there, self.died_starting = True, 0
        self._count_starting()
        self.to_ask.append(worker)
        self.dispatch.joined(worker)

    def _committed(self, answer: "Future[Any]", worker: _Worker, task: ShardTask) -> Committed | None:
        try:
            packed = answer.result()
        except _LOST as error:
            if worker in self.workers:  # the first of its shards to tell; unreachable is as good as dead
                self._let_go(worker)
            self.dispatch.lost(worker, task, error)
            logger.warning("a worker was lost at shard %s; another one takes it", task.plan.shard_id)
            return None
        shard = unpack_outcome(packed)
        if isinstance(shard, Refused):
            raise UserError(shard.reason)
        self.dispatch.done(worker, task)
        if self.progress is not None:
            self.progress.shard_committed(shard, members=len(task.plan))
        return task, shard

    def _told_state(self, answer: "Future[Any]", worker: _Worker) -> None:
        if worker in self.workers:
            try:
                worker.state = answer.result()
            except _LOST:
                worker.state = None  # its shards tell as well, and are what counts
            self.to_ask.append(worker)

    def look_round(self) -> None:
        """Every few seconds: ask workers what they are at, tell of it, and see whether there are enough of them."""
        if time.monotonic() - self.polled < _POLL_S:
            return
        self.polled = time.monotonic()
        self._count_starting()
        self.arrange()
        for _ in range(min(_ASKED_AT_ONCE, len(self.to_ask))):
            worker = self.to_ask.popleft()
            if worker in self.workers:
                asked = worker.actor.state.options(concurrency_group="state").remote()
                self._call(asked, self._told_state, worker)
        if self.progress is not None:
            self.progress.workers_are(worker.state for worker in self.workers if worker.state is not None)
        self._check_room()

    def _check_room(self) -> None:
        there, now = self.dispatch.workers, time.monotonic()
        if there != self.told and not self.starting:
            self.told = there
            logger.info("%d workers, of %d at most", there, self.config.max_workers)
        if there >= min(self.config.min_workers, self.dispatch.unfinished):
            self.short_since = None
            return
        if self.short_since is None:
            self.short_since = now
            logger.info("waiting for room for workers on the cluster: each takes %s", self._needs)
        if now - self.short_since > 60 * self.config.wait_minutes:
            raise UserError(
                f"the Ray cluster had room for {there} workers, where cache.workers wants {self.config.min_workers} at "
                f"least, for {self.config.wait_minutes:g} minutes: each takes {self._needs}; add nodes or change what "
                "a worker takes. What is committed stays"
            )

    @property
    def _needs(self) -> str:
        config = self.config
        needs = [f"{config.cpus_per_worker:g} CPUs"]
        needs += [f"{config.gpus_per_worker:g} GPUs"] if config.gpus_per_worker else []
        needs += [f"on {config.accelerator}"] if config.accelerator else []
        return " ".join(needs)

    def dismiss(self) -> None:
        """Nothing runs on."""
        for worker in list(self.workers):
            self._let_go(worker)
