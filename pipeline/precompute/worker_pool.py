"""Hands shards to Ray actors: each loads the frozen LDM once and computes whole shards, two at a time.

Shards are pure, so a lost worker costs only the shards that it was at: those go to others, a bounded number of times.
Which of its two shards cost a worker its life is not known, so both count an attempt; but a shard that has lost a
worker is computed alone from then on, so that one that kills (say, for want of memory) costs another an attempt at
most once, and is the one that is named. Faults of the user (`UserError`) are never tried again.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError

from ldznet.errors import UserError
from pipeline.cache.receipt import Receipt
from pipeline.precompute.progress import Progress
from pipeline.precompute.watch import WorkerState
from pipeline.precompute.worker import Refused, ShardTask, ShardWorker, WorkerSetup
from pipeline.recipe import CacheConfig

__all__ = ["Refused", "ShardTask", "ShardWorker", "WorkerSetup", "run_shards"]

logger = logging.getLogger(__name__)

SHARDS_AT_ONCE = 2  # a worker: one has the device while the other decodes, packs or uploads
_POLL_S = 2.0  # workers are asked so often what they are at
_LOST = (RayActorError, OutOfMemoryError)


def run_shards(
    tasks: Iterable[ShardTask],
    *,
    setup: WorkerSetup,
    config: CacheConfig,
    progress: Progress | None = None,
) -> Iterator[tuple[ShardTask, Receipt]]:
    """Yield each task with its receipt, as they are committed, in any order.

    Tasks are taken lazily: those in flight and one a worker are held, whatever their number.

    Args:
        tasks: shards to compute.
        setup: what workers need to know.
        config: how many workers, on what, and how often a shard is tried.
        progress: told of every shard, and every few seconds what the workers are at.

    Raises:
        UserError: what a worker found to be the user's mistake.
        RuntimeError: a shard lost its worker `config.attempts` times.
    """
    pool = _Pool(setup=setup, config=config, tasks=iter(tasks), progress=progress)
    try:
        pool.fill()
        while pool.running:
            for task, receipt in pool.collect():
                if progress is not None:
                    progress.shard_committed(receipt, members=len(task.plan.members))
                pool.fill()
                yield task, receipt
            pool.fill()
    finally:
        pool.dismiss()


@dataclass(kw_only=True, eq=False)
class _Worker:
    """An actor and what it is at."""

    actor: Any
    at: int = 0  # shards
    alone: bool = False  # with a shard that has lost a worker before
    asked: Any = None  # the answer to `state` that is on its way
    state: WorkerState | None = None


@dataclass(kw_only=True)
class _Pool:
    """Workers, what each is at, and what is still to do."""

    setup: WorkerSetup
    config: CacheConfig
    tasks: Iterator[ShardTask]
    progress: Progress | None
    waiting: deque[ShardTask] = field(default_factory=deque)  # taken from `tasks`, not begun
    again: deque[ShardTask] = field(default_factory=deque)  # lost a worker
    workers: list[_Worker] = field(default_factory=list)
    running: dict[Any, tuple[_Worker, ShardTask]] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)
    polled: float = 0.0

    def fill(self) -> None:
        """Give everyone enough to do; hire where that pays, and let go whom nothing is left for."""
        while self._give_one():
            pass
        if not self.waiting and not self.again:
            for worker in [each for each in self.workers if not each.at]:
                self._let_go(worker)

    def _give_one(self) -> bool:
        self.waiting.extend(islice(self.tasks, self.config.workers - len(self.waiting)))
        idle = [worker for worker in self.workers if not worker.at]
        if self.again or (self.waiting and (idle or len(self.workers) < self.config.workers)):
            if not idle and len(self.workers) < self.config.workers:
                idle = [self._hire()]
            if idle:
                self._give(idle[0], alone=bool(self.again))
                return True
        # A second shard only where each of the others could still have a first one: nobody idles at the end. And none
        # while a shard waits for a worker of its own.
        if not self.again and len(self.waiting) >= self.config.workers:
            for worker in sorted(self.workers, key=lambda each: each.at):
                if worker.at < SHARDS_AT_ONCE and not worker.alone:
                    self._give(worker, alone=False)
                    return True
        return False

    def _give(self, worker: _Worker, *, alone: bool) -> None:
        task = self.again.popleft() if alone else self.waiting.popleft()
        self.attempts[task.plan.shard_id] += 1
        worker.at, worker.alone = worker.at + 1, alone
        self.running[worker.actor.compute.remote(task)] = worker, task

    def _hire(self) -> _Worker:
        options = {"num_cpus": self.config.cpus_per_worker, "num_gpus": self.config.gpus_per_worker}
        remote = ray.remote(concurrency_groups={"state": 1})(ShardWorker)
        worker = _Worker(actor=remote.options(max_concurrency=SHARDS_AT_ONCE, **options).remote(self.setup))
        self.workers.append(worker)
        return worker

    def _let_go(self, worker: _Worker) -> None:
        ray.kill(worker.actor)
        self.workers.remove(worker)

    def collect(self) -> Iterator[tuple[ShardTask, Receipt]]:
        """Wait for a while; what is done."""
        done, _ = ray.wait(list(self.running), num_returns=1, timeout=_POLL_S)
        for answer in done:
            worker, task = self.running.pop(answer)
            worker.at -= 1
            worker.alone = worker.alone and bool(worker.at)
            try:
                receipt = ray.get(answer)
            except _LOST as error:
                self._lost(worker, task, error)
                continue
            if isinstance(receipt, Refused):
                raise UserError(receipt.reason)
            self.attempts.pop(task.plan.shard_id, None)
            yield task, receipt
        self._ask()

    def _lost(self, worker: _Worker, task: ShardTask, error: Exception) -> None:
        if worker in self.workers:  # the first of its shards to tell; unreachable is as good as dead
            self._let_go(worker)
        shard, attempts = task.plan.shard_id, self.attempts[task.plan.shard_id]
        if attempts >= self.config.attempts:
            raise RuntimeError(
                f"shard {shard} lost its worker {attempts} times, the last time: {error}"
            ) from error
        logger.warning("a worker was lost at shard %s; another one takes it", shard)
        self.again.append(task)

    def _ask(self) -> None:
        """Ask the workers what they are at, and take up what they answered, without waiting for anyone."""
        if self.progress is None or time.monotonic() - self.polled < _POLL_S:
            return
        self.polled = time.monotonic()
        for worker in self.workers:
            if worker.asked is not None and ray.wait([worker.asked], timeout=0)[0]:
                try:
                    worker.state = ray.get(worker.asked)
                except _LOST:
                    worker.state = None  # its shards tell as well, and are what counts
                worker.asked = None
            if worker.asked is None:
                worker.asked = worker.actor.state.options(concurrency_group="state").remote()
        self.progress.workers_are(worker.state for worker in self.workers if worker.state is not None)

    def dismiss(self) -> None:
        """Nothing runs on."""
        for worker in list(self.workers):
            self._let_go(worker)
        self.running.clear()
