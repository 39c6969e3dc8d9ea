"""Leases, by which jobs that write into a cache and `ldznet cache collect` keep out of each other's way.

A job holds `leases/FAMILY/RANDOM.json` from before its first look at the cache until its manifest is written; a
collector holds `leases/collecting.json` while it looks for garbage and removes it. Both are renewed every minute, and
are dead when 15 minutes old by the store's clock. Why neither can slip past the other (Dekker's argument):

- The job writes its lease, then looks for the collector's mark. The collector writes its mark, then lists leases.
- Where the job saw no mark, its look came before the mark was written; its lease was written before that look, so
  before the collector listed leases: the collector saw it, and leaves the whole family alone.
- Where the job saw a mark, it waits until that is gone or dead before it reads or writes anything of the cache.
- The collector lists what there is after it has listed leases. A job whose lease was gone by then had written its
  manifest before, so the listing names its shards.
- A collector that cannot renew its mark stops removing well before the mark counts as dead, and a job that could not
  renew its lease stops before it writes a manifest (`Heartbeat.ensure`).

This needs what S3 has promised since 2020, and a folder on one machine has: a read or a listing that begins after a
write was acknowledged shows that write. Folders shared by machines need that too, and clocks that agree to minutes.

A training only reads, and holds leases of the same kind (`reading_lease`) so that `collect --drop` leaves it its cache.

A family is every numeric specification whose shards a request may take over (`pipeline.cache.relation`): they differ in
blocks, stored type and number of draws. So a job need not tell beforehand which of them it will name.
"""

import errno
import hashlib
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from ldznet.config import Config
from ldznet.errors import UserError
from pipeline.cache.heartbeat import DEAD_AFTER_S, RENEW_EVERY_S, Heartbeat
from pipeline.cache.relation import in_common
from pipeline.cache.spec import CacheSpec, canonical_json
from pipeline.object_store.faults import ObjectTooLargeError
from pipeline.object_store.store import ObjectInfo, ObjectStore

logger = logging.getLogger(__name__)

LEASE_PREFIX: Final = "leases/"
COLLECTING_KEY: Final = "leases/collecting.json"
_CLOCK: Final = "clock-"

_POLL_S = 2.0
_LONGEST_WAIT_S = 3600.0
_LARGEST: Final = 1 << 16  # bytes of a lease


class Holder(Config):
    """Who holds a lease, for people to read."""

    host: str
    process: int
    token: str
    reads: bool = False  # a training; else a job that writes

    def __str__(self) -> str:
        return f"{'training, ' if self.reads else ''}{self.host}, process {self.process}"

    @classmethod
    def this_process(cls, *, reads: bool = False) -> "Holder":
        """This one, under a token of its own."""
        return cls(host=socket.gethostname(), process=os.getpid(), token=secrets.token_hex(8), reads=reads)


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseState:
    """A lease as a collector finds it."""

    info: ObjectInfo
    family: str
    holder: Holder | None  # None: the lease is there, its text is not ours
    live: bool


def family(spec: CacheSpec) -> str:
    """Names all specifications that this one may take shards from, or give some to: 32 hexadecimal digits."""
    return hashlib.sha256(canonical_json(in_common(spec)).encode()).hexdigest()[:32]


@contextmanager
def lease(
    store: ObjectStore,
    specs: Iterable[CacheSpec],
    *,
    every_s: float = RENEW_EVERY_S,
    longest_wait_s: float = _LONGEST_WAIT_S,
    poll_s: float = _POLL_S,
) -> Iterator[Heartbeat]:
    """Hold leases on the families of these specifications, for a job that writes into the cache.

    To be held from before the first look at the cache (receipts, manifests) until the last manifest is written; call
    `ensure()` on what it gives before that. Waits while a `collect` removes things.

    Args:
        store: the cache.
        specs: those of the job's sets; others that it takes shards from are of their families.
        every_s: seconds between renewals.
        longest_wait_s: how long to wait for a `collect`.
        poll_s: seconds between looks at it, jittered.

    Raises:
        UserError: a `collect` went on for longer than that.
    """
    keys, heartbeat = _lease_of(store, specs, Holder.this_process(), every_s=every_s)
    heartbeat.start()
    try:
        _wait_for_collector(store, longest_wait_s=longest_wait_s, poll_s=poll_s)
        yield heartbeat
    finally:
        heartbeat.stop()
        _release(store, keys, heartbeat)


@contextmanager
def reading_lease(
    store: ObjectStore,
    specs: Iterable[CacheSpec],
    *,
    every_s: float = RENEW_EVERY_S,
    longest_wait_s: float = _LONGEST_WAIT_S,
    poll_s: float = _POLL_S,
) -> Iterator[None]:
    """Hold leases on the families of these specifications, for a job that reads what manifests of theirs name.

    Look for the manifests again once it is held: what was found before may have been collected. Where the store takes
    no writes from us, one warning and no lease: reading needs no more than the right to read.

    Args:
        store: the cache.
        specs: those of the manifests.
        every_s: seconds between renewals.
        longest_wait_s: how long to wait for a `collect`.
        poll_s: seconds between looks at it, jittered.

    Raises:
        UserError: a `collect` went on for longer than that.
    """
    keys, heartbeat = _lease_of(store, specs, Holder.this_process(reads=True), every_s=every_s)
    try:
        heartbeat.start()
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EROFS:
            raise
        logger.warning(
            "the cache is not guarded against `ldznet cache collect --drop` meanwhile: no lease could be written (%s)",
            error,
        )
        yield
        return
    try:
        _wait_for_collector(store, longest_wait_s=longest_wait_s, poll_s=poll_s)
        yield
    finally:
        heartbeat.stop()
        _release(store, keys, heartbeat)


def _lease_of(
    store: ObjectStore, specs: Iterable[CacheSpec], holder: Holder, *, every_s: float
) -> tuple[list[str], Heartbeat]:
    body = holder.model_dump_json().encode()
    keys = [f"{LEASE_PREFIX}{name}/{holder.token}.json" for name in sorted({family(spec) for spec in specs})]

    def renew() -> bool:
        for key in keys:
            store.put(key, body)
        return True

    return keys, Heartbeat(renew, what=f"the lease on {store.url}", every_s=every_s)


def _release(store: ObjectStore, keys: Iterable[str], heartbeat: Heartbeat) -> None:
    if heartbeat.failing:  # the store is away: the lease dies by itself
        return
    try:
        for key in keys:
            store.delete(key)
    except (OSError, UserError) as error:  # whatever the job did is done
        logger.warning("a lease stays behind for %.0f minutes: %s", DEAD_AFTER_S / 60, error)


def _wait_for_collector(store: ObjectStore, *, longest_wait_s: float, poll_s: float) -> None:
    begun, told = time.monotonic(), False
    while (mark := store.stat(COLLECTING_KEY)) is not None:
        if store_time(store) - mark.modified > DEAD_AFTER_S:
            return
        if time.monotonic() - begun > longest_wait_s:
            raise UserError(
                f"`ldznet cache collect` has been at work in {store.url} for {longest_wait_s / 60:.0f} minutes: "
                "run again when it is done"
            )
        if not told:
            logger.info("waiting for `ldznet cache collect` to end in %s", store.url)
            told = True
        time.sleep(random.uniform(poll_s / 2, poll_s * 3 / 2))  # noqa: S311 - jitter, no secret


def store_time(store: ObjectStore) -> float:
    """What time the store's clock has: the time of an object written just now."""
    key = f"{LEASE_PREFIX}{_CLOCK}{secrets.token_hex(8)}.json"
    store.put(key, b"{}\n")
    try:
        return _stat(store, key).modified
    finally:
        store.delete(key)


def _stat(store: ObjectStore, key: str) -> ObjectInfo:
    info = store.stat(key)
    if info is None:
        raise OSError(f"{store.url}/{key} is gone just after it was written: is something deleting there?")
    return info


def list_leases(store: ObjectStore, *, now: float) -> list[LeaseState]:
    """Every lease, live and dead, at this time of the store's clock; dead ones of `store_time`, too."""
    states = []
    for info in store.list(LEASE_PREFIX):
        name, slash, _ = info.key.removeprefix(LEASE_PREFIX).partition("/")
        live = now - info.modified <= DEAD_AFTER_S
        if slash:
            states.append(LeaseState(info=info, family=name, holder=_holder(store, info.key), live=live))
        elif (
            name.startswith(_CLOCK) and not live
        ):  # of a process that was killed between writing and removing it
            states.append(LeaseState(info=info, family="", holder=None, live=False))
    return states


def _holder(store: ObjectStore, key: str) -> Holder | None:
    try:
        return Holder.model_validate_json(store.get(key, at_most=_LARGEST))
    except (KeyError, ValidationError, ObjectTooLargeError):  # released just now, or none of ours
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Collecting:
    """A collector's mark: what time it was when it was written, and whether it still holds."""

    now: float  # by the store's clock: seconds since the epoch
    heartbeat: Heartbeat


@contextmanager
def collecting(store: ObjectStore, *, every_s: float = RENEW_EVERY_S) -> Iterator[Collecting]:
    """Hold the collector's mark, so that jobs that start wait.

    Raises:
        UserError: another collector holds it.
    """
    holder = Holder.this_process()
    body = holder.model_dump_json().encode()
    _take_mark(store, body)
    mine = _stat(store, COLLECTING_KEY)
    now, etag = mine.modified, mine.etag

    def renew() -> bool:
        nonlocal etag
        if not store.replace(COLLECTING_KEY, body, etag=etag):
            return False
        etag = _stat(store, COLLECTING_KEY).etag
        return True

    heartbeat = Heartbeat(renew, what=f"the mark {store.url}/{COLLECTING_KEY}", every_s=every_s)
    heartbeat.start()
    try:
        yield Collecting(now=now, heartbeat=heartbeat)
    finally:
        heartbeat.stop()
        if heartbeat.holds:
            _release(store, [COLLECTING_KEY], heartbeat)


def _take_mark(store: ObjectStore, body: bytes) -> None:
    if store.create(COLLECTING_KEY, body):
        return
    standing = store.stat(COLLECTING_KEY)
    if standing is None:
        taken = store.create(COLLECTING_KEY, body)
    else:
        dead = store_time(store) - standing.modified > DEAD_AFTER_S
        taken = dead and store.replace(COLLECTING_KEY, body, etag=standing.etag)
    if not taken:
        raise UserError(
            f"another `ldznet cache collect` is at work in {store.url}: wait until it ends "
            f"(if it was killed, {DEAD_AFTER_S / 60:.0f} minutes)"
        )
