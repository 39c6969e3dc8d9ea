"""Which worker gets which shard, and how many workers there should be. Knows nothing of Ray.

Shards are pure, so a lost worker costs only the shards that it was at: those go to others, a bounded number of times.
Which of its two shards cost a worker its life is not known, so both count an attempt; but a shard that has lost a
worker is computed alone from then on, so that one that kills (say, for want of memory) costs another an attempt at
most once, and is the one that is named.
"""

from collections import Counter, deque
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from pipeline.precompute.worker import ShardTask

SHARDS_AT_ONCE: Final = 2  # a worker: one has the device while the other decodes, packs or uploads

WorkerT = TypeVar("WorkerT")


class Dispatch(Generic[WorkerT]):
    """Every step takes the same time, whatever the number of workers and shards.

    Tasks are taken lazily: those in flight and one a worker are held.
    """

    def __init__(self, tasks: Iterator[ShardTask], *, shards: int, workers: int, attempts: int) -> None:
        """Nobody is there yet.

        Args:
            tasks: what is to be done.
            shards: how many those are.
            workers: at most.
            attempts: a shard may lose so many workers less one.
        """
        self._tasks, self._untaken = tasks, shards
        self._bound, self._attempts_allowed = workers, attempts
        self._waiting: deque[ShardTask] = deque()  # taken from `tasks`, not begun
        self._again: deque[ShardTask] = deque()  # lost a worker
        self._attempts: Counter[tuple[str, str]] = Counter()
        self._at: dict[WorkerT, int] = {}  # shards of every worker that is there
        self._alone: set[WorkerT] = set()  # with a shard that has lost a worker before
        self._idle: dict[WorkerT, None] = {}
        self._with_one: dict[WorkerT, None] = {}  # and not alone
        self._running = 0

    @property
    def workers(self) -> int:
        """How many are there."""
        return len(self._at)

    @property
    def unfinished(self) -> int:
        """Shards to come and in flight."""
        return self._to_begin + self._running

    @property
    def wanted(self) -> int:
        """How many workers there should be: as many as have a shard or would get one, up to the bound."""
        return min(self._bound, len(self._at) - len(self._idle) + self._to_begin)

    @property
    def _to_begin(self) -> int:
        return self._untaken + len(self._waiting) + len(self._again)

    def joined(self, worker: WorkerT) -> None:
        """A worker is there, and idle."""
        self._at[worker] = 0
        self._sort(worker)

    def left(self, worker: WorkerT) -> None:
        """A worker is no longer there; what it was at is told of one by one."""
        if worker in self._at:
            del self._at[worker]
            self._alone.discard(worker)
            self._sort(worker)

    def give(self, *, starting: int = 0) -> tuple[WorkerT, ShardTask] | None:
        """Give a worker a shard; None where there is nothing to give, or nobody to give it to.

        Args:
            starting: workers that will be there soon.
        """
        self._refill()
        if self._idle and (self._again or self._waiting):
            alone = bool(self._again)
            return self._give(next(iter(self._idle)), alone=alone)
        # A second shard only where each of the others could still have a first one: nobody idles at the end. And none
        # while a shard waits for a worker of its own.
        enough = self._to_begin >= len(self._at) + starting
        if self._with_one and self._waiting and not self._again and enough:
            return self._give(next(iter(self._with_one)), alone=False)
        return None

    def spare(self) -> WorkerT | None:
        """A worker that may go, as there is nothing left for it."""
        return next(iter(self._idle)) if self._idle and not self._to_begin else None

    def done(self, worker: WorkerT, task: ShardTask) -> None:
        """A shard is committed."""
        self._attempts.pop(task.name, None)
        self._ended(worker)

    def lost(self, worker: WorkerT, task: ShardTask, error: Exception) -> None:
        """A worker was lost at a shard: another one shall take it.

        Raises:
            RuntimeError: once too often.
        """
        self._ended(worker)
        attempts = self._attempts[task.name]
        if attempts >= self._attempts_allowed:
            raise RuntimeError(
                f"shard {task.plan.shard_id} lost its worker {attempts} times, the last time: {error}"
            ) from error
        self._again.append(task)

    def _refill(self) -> None:
        while len(self._waiting) < max(1, len(self._at)):
            task = next(self._tasks, None)
            if task is None:
                self._untaken = 0
                return
            self._untaken = max(self._untaken - 1, 0)
            self._waiting.append(task)

    def _give(self, worker: WorkerT, *, alone: bool) -> tuple[WorkerT, ShardTask]:
        task = self._again.popleft() if alone else self._waiting.popleft()
        self._attempts[task.name] += 1
        self._running += 1
        self._at[worker] += 1
        if alone:
            self._alone.add(worker)
        self._sort(worker)
        return worker, task

    def _ended(self, worker: WorkerT) -> None:
        self._running -= 1
        if worker in self._at:
            self._at[worker] -= 1
            if not self._at[worker]:
                self._alone.discard(worker)
            self._sort(worker)

    def _sort(self, worker: WorkerT) -> None:
        self._idle.pop(worker, None)
        self._with_one.pop(worker, None)
        at = self._at.get(worker)
        if at == 0:
            self._idle[worker] = None
        elif at is not None and at < SHARDS_AT_ONCE and worker not in self._alone:
            self._with_one[worker] = None
