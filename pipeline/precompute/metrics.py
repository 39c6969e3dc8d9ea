"""What precompute tells Prometheus, through Ray's own endpoint on every node."""

import threading
from collections import Counter as Counts
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from pipeline.cache.receipt import Receipt
from pipeline.precompute.watch import ShardWatch

CACHE_DIGITS = 12  # of the cache's key, as logs show it
_SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
_TAGS: Final = ("cache",)
_PREFIX: Final = "ldznet_precompute_"  # and Ray's own `ray_` before it


class PrecomputeMetrics:
    """Counts of one worker, each with the beginning of the cache's key as the tag `cache`.

    Outside Ray nothing is counted: there is nobody to ask.
    """

    def __init__(self) -> None:
        self._told = _Told() if ray.is_initialized() else None

    @contextmanager
    def shard(self, cache_key: str, watch: ShardWatch) -> Iterator[Callable[[Receipt], None]]:
        """One shard in flight. What it gives is called with the receipt."""
        if self._told is None:
            yield lambda _: None
            return
        told, tags = self._told, {"cache": cache_key[:CACHE_DIGITS]}
        told.begin(tags)
        try:
            yield lambda receipt: told.committed(receipt, watch, tags)
        finally:
            told.end(tags)


class _Told:
    """Ray's counters, which every thread of a worker may use."""

    def __init__(self) -> None:
        self._shards = _counter("shards", "shards committed")
        self._samples = _counter("samples", "samples committed")
        self._bytes = _counter("bytes", "bytes of shards committed")
        self._failed = _counter("failed", "samples left out because their data is faulty")
        self._filtered = _counter("filtered", "samples that the policy leaves out")
        self._in_flight = Gauge(
            f"{_PREFIX}shards_in_flight", description="shards that a worker is at", tag_keys=_TAGS
        )
        self._seconds = Histogram(
            f"{_PREFIX}stage_seconds",
            description="seconds of a shard in a stage",
            boundaries=_SECONDS,
            tag_keys=(*_TAGS, "stage"),
        )
        self._flying: Counts[str] = Counts()
        self._lock = threading.Lock()

    def begin(self, tags: dict[str, str]) -> None:
        self._fly(tags, 1)

    def end(self, tags: dict[str, str]) -> None:
        self._fly(tags, -1)

    def committed(self, receipt: Receipt, watch: ShardWatch, tags: dict[str, str]) -> None:
        for counter, value in (
            (self._shards, 1),
            (self._samples, len(receipt.samples)),
            (self._bytes, receipt.size),
            (self._failed, len(receipt.left_out_for("failed"))),
            (self._filtered, len(receipt.left_out_for("filtered"))),
        ):
            if value:  # Ray refuses to count nothing
                counter.inc(value, tags=tags)
        for stage, seconds in watch.seconds.items():
            self._seconds.observe(seconds, tags={**tags, "stage": stage})

    def _fly(self, tags: dict[str, str], change: int) -> None:
        with self._lock:
            self._flying[tags["cache"]] += change
            self._in_flight.set(self._flying[tags["cache"]], tags=tags)


def _counter(name: str, description: str) -> Any:
    return Counter(f"{_PREFIX}{name}", description=description, tag_keys=_TAGS)
