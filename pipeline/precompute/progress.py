"""How far a run of shards is: fed by `run_shards`, shown by whoever listens."""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from pipeline.cache.committed_shard import CommittedShard
from pipeline.precompute.watch import ShardState, WorkerState

RATE_OVER_S: Final = 600.0  # rates are of the last so many seconds: a week is not judged by its first day
_POINT_S: Final = 1.0  # between two points by which rates are measured
_TOLD_S: Final = 0.1  # listeners are told no more often, but of the last shard
_REASONS: Final = 1000  # distinct ones that are counted apart: they may name files
_OTHERS: Final = "other reasons"


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A run at one moment. Totals are None where they are not known."""

    seconds: float  # since it began
    shards: int
    shards_total: int | None
    members: int  # of committed shards, and those computed in the shards in flight
    members_total: int | None
    samples: int  # committed
    bytes_written: int
    members_per_s: float
    bytes_per_s: float
    seconds_left: float | None
    failed: int
    filtered: int
    reasons: tuple[tuple[str, int], ...]  # of failures, the most frequent first
    workers: tuple[WorkerState, ...]

    def __str__(self) -> str:
        of_shards = "" if self.shards_total is None else f" of {self.shards_total}"
        of_members = "" if self.members_total is None else f" of {self.members_total}"
        parts = [
            f"{self.members}{of_members} samples in {self.shards}{of_shards} shards",
            f"{self.members_per_s:.1f} samples/s, {self.bytes_per_s / 1e6:.1f} MB/s",
        ]
        if self.seconds_left is not None:
            parts.append(f"{self.seconds_left:.0f} s left")
        if self.failed or self.filtered:
            parts.append(f"{self.failed} failed, {self.filtered} filtered")
        return "; ".join(parts)


class Progress:
    """Counts of a run. One thread feeds it; listeners are called there. How many workers there are costs nothing."""

    def __init__(
        self,
        *,
        shards: int | None = None,
        members: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is done yet; the clock starts.

        Args:
            shards: to be computed, where it is known.
            members: of those shards: samples times draws.
            clock: seconds that never go back.
        """
        self._shards_total, self._members_total = shards, members
        self._clock, self._started = clock, clock()
        self._shards = self._members = self._samples = self._bytes = self._failed = self._filtered = 0
        self._reasons: Counter[str] = Counter()
        self._workers: tuple[str, ...] = ()
        self._in_flight: dict[str, tuple[str, ShardState]] = {}  # by shard: who is at it, and how far
        self._computed = 0  # members of those
        self._committed: set[str] = set()
        self._points: deque[tuple[float, int, int]] = deque([(self._started, 0, 0)])  # time, members, bytes
        self._told = -math.inf
        self._listeners: list[Callable[[Snapshot], None]] = []

    def listen(self, listener: Callable[[Snapshot], None]) -> None:
        """Have a function called with a snapshot after changes: ten times a second at most, and at the end."""
        self._listeners.append(listener)

    def shard_committed(self, shard: CommittedShard, *, members: int) -> None:
        """One shard more is committed."""
        failed = [member for member in shard.left_out if member.why == "failed"]
        self._shards += 1
        self._members += members
        self._samples += len(shard.rows)
        self._bytes += shard.reference.size
        self._failed += len(failed)
        self._filtered += len(shard.left_out) - len(failed)
        for member in failed:
            known = member.reason in self._reasons or len(self._reasons) < _REASONS
            self._reasons[member.reason if known else _OTHERS] += 1
        # What was reported of it as in flight is counted with the committed ones now, also where the report comes late.
        self._committed.add(shard.reference.shard_id)
        _, state = self._in_flight.pop(shard.reference.shard_id, ("", None))
        self._computed -= state.computed if state else 0
        self._changed(at_once=self._shards == self._shards_total)

    def workers_are(self, states: Iterable[WorkerState]) -> None:
        """What the workers are at."""
        told = sorted(states, key=lambda state: state.worker)
        self._workers = tuple(state.worker for state in told)
        self._in_flight = {
            shard.shard_id: (state.worker, shard)
            for state in told
            for shard in state.shards
            if shard.shard_id not in self._committed
        }
        self._computed = sum(shard.computed for _, shard in self._in_flight.values())
        self._changed(at_once=True)

    def snapshot(self) -> Snapshot:
        """As it stands."""
        now, members = self._clock(), self._members_done
        since, members_then, bytes_then = self._points[0]
        seconds = max(now - since, 1e-9)
        rate = max(members - members_then, 0) / seconds
        left = None
        if self._members_total is not None and rate > 0:
            left = max(self._members_total - members, 0) / rate
        return Snapshot(
            seconds=now - self._started,
            shards=self._shards,
            shards_total=self._shards_total,
            members=members,
            members_total=self._members_total,
            samples=self._samples,
            bytes_written=self._bytes,
            members_per_s=rate,
            bytes_per_s=(self._bytes - bytes_then) / seconds,
            seconds_left=left,
            failed=self._failed,
            filtered=self._filtered,
            reasons=tuple(self._reasons.most_common()),
            workers=self._worker_states,
        )

    @property
    def _worker_states(self) -> tuple[WorkerState, ...]:
        at: dict[str, list[ShardState]] = {worker: [] for worker in self._workers}
        for worker, shard in self._in_flight.values():
            at[worker].append(shard)
        return tuple(WorkerState(worker=worker, shards=tuple(shards)) for worker, shards in at.items())

    @property
    def _members_done(self) -> int:
        return self._members + self._computed

    def _changed(self, *, at_once: bool = False) -> None:
        now = self._clock()
        if len(self._points) > 1 and now - self._points[-2][0] < _POINT_S:
            self._points.pop()
        self._points.append((now, self._members_done, self._bytes))
        while len(self._points) > 2 and self._points[1][0] <= now - RATE_OVER_S:
            self._points.popleft()
        if self._listeners and (at_once or now - self._told >= _TOLD_S):
            self._told = now
            snapshot = self.snapshot()
            for listener in self._listeners:
                listener(snapshot)
