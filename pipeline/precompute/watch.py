"""What a worker is at: stages and counts of its shards, for whoever asks."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Stage = Literal["waiting", "decoding", "computing", "converting", "uploading"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardState:
    """A shard in the making."""

    shard_id: str
    stage: Stage
    decoded: int  # members
    computed: int  # samples packed
    members: int


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerState:
    """What one worker is at; idle where it has no shards."""

    worker: str  # host:process id
    shards: tuple[ShardState, ...] = ()

    def __str__(self) -> str:
        at = ", ".join(f"{shard.stage} {shard.shard_id[:8]}" for shard in self.shards)
        return f"{self.worker} {at or 'idle'}"


class ShardWatch:
    """Follows one shard. Its own thread writes; others read."""

    def __init__(self, *, shard_id: str = "", members: int = 0) -> None:
        self._lock = threading.Lock()
        self._shard_id, self._members = shard_id, members
        self._stage: Stage = "waiting"
        self._decoded = self._computed = 0
        self._seconds: dict[Stage, float] = {}

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """The shard is in this stage for so long."""
        with self._lock:
            self._stage = stage
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self._stage = "waiting"
                self._seconds[stage] = self._seconds.get(stage, 0.0) + time.perf_counter() - started

    def decoded(self) -> None:
        """One member more is decoded, or left out."""
        with self._lock:
            self._decoded += 1

    def computed(self) -> None:
        """One sample more is in the tar."""
        with self._lock:
            self._computed += 1

    @property
    def state(self) -> ShardState:
        """As it stands."""
        with self._lock:
            return ShardState(
                shard_id=self._shard_id,
                stage=self._stage,
                decoded=self._decoded,
                computed=self._computed,
                members=self._members,
            )

    @property
    def seconds(self) -> dict[Stage, float]:
        """Seconds by stage."""
        with self._lock:
            return dict(self._seconds)
