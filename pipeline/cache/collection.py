"""Removing what no manifest names, while jobs start, write and end around it."""

import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from pipeline.cache.garbage import ORDER, Drop, Findings, Garbage, find_garbage
from pipeline.cache.heartbeat import Heartbeat
from pipeline.cache.lease import collecting, list_leases
from pipeline.object_store.store import ObjectStore

_SHORTEST_UPLOAD_AGE_S: Final = 24 * 3600.0  # whoever sends for longer is dead


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """What is gone, and what was not touched after all."""

    removed: tuple[Garbage, ...]
    kept: int  # shown before, and in use, changed or gone by now
    unfinished: int | None  # unfinished uploads that were discarded; None: left, for a job is at work

    @property
    def size(self) -> int:
        """Bytes that are free now."""
        return sum(one.info.size for one in self.removed)


def preview(store: ObjectStore, *, older_than_s: float, drop: Drop | None = None) -> Findings:
    """What `collect` would remove now. Writes nothing; ages are by this machine's clock.

    Raises:
        UserError: the URL holds no cache, a manifest cannot be read, or a job is at work on what is to be dropped.
    """
    now = time.time()
    return find_garbage(store, list_leases(store, now=now), now=now, older_than_s=older_than_s, drop=drop)


def collect(
    store: ObjectStore,
    shown: Findings,
    *,
    older_than_s: float,
    drop: Drop | None = None,
    at_once: int = 16,
    progress: Callable[[int], None] | None = None,
) -> Collected:
    """Remove of what was shown that which is garbage still, looked at anew under the collector's mark.

    What leads to something goes before it (a receipt before its tar, a manifest before its parts), so that a
    collector killed anywhere leaves garbage and nothing broken.

    Args:
        store: the cache.
        shown: what `preview` found, to which somebody agreed.
        older_than_s: what is younger stays, by the store's clock.
        drop: manifests to be removed on purpose.
        at_once: deletions on their way at the same time.
        progress: told how many more are gone.

    Raises:
        UserError: another collector is at work, or as for `preview`.
        OSError: the mark could not be kept, so that nothing more may be removed.
    """
    agreed = {(one.info.key, one.info.etag) for one in shown.garbage}
    with collecting(store) as mark:
        leases = list_leases(store, now=mark.now)
        found = find_garbage(store, leases, now=mark.now, older_than_s=older_than_s, drop=drop)
        removed = [one for one in found.garbage if (one.info.key, one.info.etag) in agreed]
        for kind in ORDER:
            _remove(store, [one for one in removed if one.kind == kind], mark.heartbeat, at_once, progress)
        mark.heartbeat.ensure()
        # A running job may be sending for as long: its uploads cannot be told from others'.
        upload_age_s = max(older_than_s, _SHORTEST_UPLOAD_AGE_S)
        unfinished = None if found.running else store.discard_unfinished(older_than_s=upload_age_s)
    return Collected(removed=tuple(removed), kept=len(agreed) - len(removed), unfinished=unfinished)


def _remove(
    store: ObjectStore,
    garbage: Collection[Garbage],
    heartbeat: Heartbeat,
    at_once: int,
    progress: Callable[[int], None] | None,
) -> None:
    """All of one kind: only when they are gone comes the next kind."""

    def remove(one: Garbage) -> None:
        heartbeat.ensure()
        store.delete(one.info.key)
        if progress is not None:
            progress(1)

    if at_once == 1:
        for one in garbage:
            remove(one)
        return
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="collect")
    try:
        for _ in pool.map(remove, garbage):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
