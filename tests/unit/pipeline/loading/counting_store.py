"""A store that notes what is asked of it."""

from collections.abc import Sequence
from typing import Any

from pipeline.object_store.store import ObjectStore


class CountingStore:
    """Notes ranged GETs: key, start, length."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.ranges: list[tuple[str, int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get_range(self, key: str, *, start: int, length: int) -> bytes:
        self.ranges.append((key, start, length))
        return self._store.get_range(key, start=start, length=length)

    def get_range_into(self, key: str, *, start: int, buffers: Sequence[memoryview]) -> None:
        self.ranges.append((key, start, sum(buffer.nbytes for buffer in buffers)))
        self._store.get_range_into(key, start=start, buffers=buffers)
