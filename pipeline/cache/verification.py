"""Verifying a cache: every seal, index and receipt, and the bytes of all shards or of a seeded sample of them."""

import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np

from ldznet.config import Config
from pipeline.cache import layout
from pipeline.cache.cache_keys import list_cache_keys
from pipeline.cache.index import INDEX_DTYPE, Index
from pipeline.cache.inventory import list_manifest_ids, read_spec
from pipeline.cache.manifest import Manifest, Part, read_answer, read_manifest, read_part_of
from pipeline.cache.sealed import BrokenSealError, DamagedDocumentError
from pipeline.cache.shard_check import Fault, ShardChecked, ShardToCheck, check_shard, rows_digest
from pipeline.object_store.faults import ObjectTooLargeError, UnavailableObjectError
from pipeline.object_store.store import ObjectStore

_LONGEST_PLACE = 4096  # bytes of a URL before an object's key
_UNREADABLE_IN_A_ROW = 16  # then it is the store, and not this shard or that


class Verification(Config):
    """What a verification looked at, and what it found."""

    manifests: int
    shards: int  # whose bytes were hashed, columns included
    shards_in_all: int
    read: int  # bytes
    faults: tuple[Fault, ...]


def verify(
    store: ObjectStore,
    *,
    cache_key: str | None = None,
    share: float = 1.0,
    seed: int = 0,
    at_once: int = 4,
    progress: Callable[[int], None] | None = None,
) -> Verification:
    """Check one specification, or the whole cache.

    All requests, manifests and their indexes are checked; receipts and bytes of the chosen shards. Memory: the
    indexes of one manifest (40 bytes a sample), and 8 MiB for each shard that is being hashed.

    Args:
        store: the cache.
        cache_key: of the specification; None: all.
        share: of the shards to check, in (0, 1]; at least one of each manifest.
        seed: of their choice.
        at_once: shards being hashed at the same time.
        progress: told how many more are done, of `count_shards`.

    Raises:
        UserError: the URL holds no cache.
        OSError: the store keeps failing.
    """
    faults: list[Fault] = []
    cache_keys = {cache_key} if cache_key else set(list_cache_keys(store))
    cache_keys |= _check_requests(store, cache_key, faults)
    checked, manifests = _Checked(), 0
    for key in sorted(cache_keys):
        _check_spec(store, key, faults)
        for name in list_manifest_ids(store, key):
            manifests += 1
            manifest = _read(store, key, name, faults)
            if manifest is None:
                continue
            chosen = _choose(manifest, share=share, seed=seed)
            shards = checked.new(_shards_to_check(store, manifest, chosen, faults), faults)
            for one in _each(store, shards, at_once=at_once):
                checked.take(one)
                faults += one.faults
                if progress is not None:
                    progress(1)
            checked.in_all |= {
                part.object_key for shard in manifest.shards for part in (shard, *shard.columns)
            }
    return Verification(
        manifests=manifests,
        shards=len(checked.rows),
        shards_in_all=len(checked.in_all),
        read=checked.read,
        faults=tuple(faults),
    )


def count_shards(
    store: ObjectStore, *, cache_key: str | None = None, share: float = 1.0, seed: int = 0
) -> int:
    """How many shards, columns included, `verify` will hash for these arguments."""
    chosen: set[str] = set()
    for key in [cache_key] if cache_key else list_cache_keys(store):
        for name in list_manifest_ids(store, key):
            manifest = _read(store, key, name, [])
            if manifest is not None:
                shards = [manifest.shards[position] for position in _choose(manifest, share=share, seed=seed)]
                chosen |= {part.object_key for shard in shards for part in (shard, *shard.columns)}
    return len(chosen)


class _Checked:
    """Shards looked at already: one that several manifests name is hashed once."""

    def __init__(self) -> None:
        self.rows: dict[str, int | None] = {}  # by object key: a digest of its rows of the index
        self.in_all: set[str] = set()
        self.read = 0
        self._unreadable = 0

    def new(self, shards: Iterable[ShardToCheck], faults: list[Fault]) -> list[ShardToCheck]:
        """Those not looked at yet. The others' rows must be those that were checked."""
        fresh = []
        for shard in shards:
            key, rows = shard.reference.object_key, rows_digest(shard.rows)
            if key not in self.rows:
                fresh.append(shard)
                self.rows[key] = rows
            elif None not in {rows, self.rows[key]} and rows != self.rows[key]:
                detail = "manifests disagree about where its samples lie"
                faults.append(
                    Fault(object_key=key, what="index differs", detail=detail, shard=shard.reference)
                )
        return fresh

    def take(self, one: ShardChecked) -> None:
        """What came of one."""
        self.read += one.read
        unreadable = any(fault.what == "unreadable" for fault in one.faults)
        self._unreadable = self._unreadable + 1 if unreadable else 0
        if self._unreadable >= _UNREADABLE_IN_A_ROW:
            raise OSError(f"{_UNREADABLE_IN_A_ROW} shards in a row cannot be read: {one.faults[0].detail}")


def verify_manifest(
    store: ObjectStore,
    manifest: Manifest,
    *,
    at_once: int = 4,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Fault]:
    """Every fault of one manifest's parts, receipts and shards, for a repair."""
    faults: list[Fault] = []
    shards = _shards_to_check(store, manifest, range(len(manifest.shards)), faults)
    yield from faults
    for one in _each(store, shards, at_once=at_once):
        yield from one.faults
        if progress is not None:
            progress(1)


def _read(store: ObjectStore, cache_key: str, manifest_id: str, faults: list[Fault]) -> Manifest | None:
    try:
        return read_manifest(store, cache_key=cache_key, manifest_id=manifest_id)
    except DamagedDocumentError as error:
        faults.append(
            Fault(object_key=layout.manifest_key(cache_key, manifest_id), what="damaged", detail=str(error))
        )
        return None


def _check_spec(store: ObjectStore, cache_key: str, faults: list[Fault]) -> None:
    key = layout.spec_key(cache_key)
    if read_spec(store, cache_key) is None:
        there = store.stat(key)
        detail = "it is not the specification of its name" if there else "the numeric specification"
        faults.append(Fault(object_key=key, what="damaged" if there else "gone", detail=detail))


def _choose(manifest: Manifest, *, share: float, seed: int) -> list[int]:
    count = len(manifest.shards)
    wanted = min(count, max(1, math.ceil(share * count)))
    generator = random.Random(f"{seed} {manifest.manifest_id}")  # noqa: S311 - a choice to be repeated, no secret
    return sorted(generator.sample(range(count), wanted))


def _shards_to_check(
    store: ObjectStore, manifest: Manifest, positions: Sequence[int], faults: list[Fault]
) -> list[ShardToCheck]:
    """The shards at these positions and their columns; what is wrong with the manifest's parts goes to `faults`."""
    parts = (manifest.index, *manifest.column_indexes)
    indexes = [_rows_of_part(store, manifest, part, faults) for part in parts]
    _read_part(store, manifest, manifest.left_out, faults)
    _check_shard_list(store, manifest, faults)
    starts = [0]
    for shard in manifest.shards:
        starts.append(starts[-1] + shard.samples)
    to_check: dict[str, ShardToCheck] = {}
    for position in positions:
        shard, rows = manifest.shards[position], slice(starts[position], starts[position + 1])
        for reference, held in zip((shard, *shard.columns), indexes, strict=False):
            to_check[reference.object_key] = ShardToCheck(
                reference=reference, rows=None if held is None else held[rows]
            )
    return list(to_check.values())


def _rows_of_part(store: ObjectStore, manifest: Manifest, part: Part, faults: list[Fault]) -> Index | None:
    data = _read_part(store, manifest, part, faults)
    return None if data is None else np.frombuffer(data, dtype=INDEX_DTYPE)


def _read_part(store: ObjectStore, manifest: Manifest, part: Part, faults: list[Fault]) -> bytes | None:
    try:
        return read_part_of(store, manifest, part)
    except UnavailableObjectError:
        raise
    except OSError as error:
        there = store.stat(part.key)
        faults.append(Fault(object_key=part.key, what="damaged" if there else "gone", detail=str(error)))
        return None


def _check_shard_list(store: ObjectStore, manifest: Manifest, faults: list[Fault]) -> None:
    """The plain list's URLs may be of another place (a bucket that was copied); their ends are the shards' keys."""
    key = layout.shard_list_key(manifest.cache_key, manifest.manifest_id)
    named = [shard.object_key.encode() for shard in manifest.shards]
    try:
        lines = store.get(key, at_most=sum(map(len, named)) + len(named) * _LONGEST_PLACE).splitlines()
    except KeyError:
        faults.append(Fault(object_key=key, what="gone", detail="the plain list of shards"))
        return
    except ObjectTooLargeError as error:
        faults.append(Fault(object_key=key, what="damaged", detail=str(error)))
        return
    if len(lines) != len(named) or not all(map(bytes.endswith, lines, named)):
        faults.append(Fault(object_key=key, what="damaged", detail="it does not list the manifest's shards"))


def _check_requests(store: ObjectStore, cache_key: str | None, faults: list[Fault]) -> set[str]:
    """Check what requests lead to. Gives the cache keys that they name, of those asked for."""
    named: set[str] = set()
    for info in store.list(layout.REQUEST_PREFIX):
        try:
            answer = read_answer(store, info.key)
        except KeyError:
            continue
        except BrokenSealError as error:
            faults.append(Fault(object_key=info.key, what="damaged", detail=str(error)))
            continue
        if cache_key not in {None, answer.cache_key}:
            continue
        named.add(answer.cache_key)
        manifest = layout.manifest_key(answer.cache_key, answer.manifest_id)
        if store.stat(manifest) is None:
            faults.append(Fault(object_key=info.key, what="leads nowhere", detail=f"there is no {manifest}"))
    return named


def _each(store: ObjectStore, shards: Sequence[ShardToCheck], *, at_once: int) -> Iterator[ShardChecked]:
    """Several at the same time, as many waiting; in order."""
    with ThreadPoolExecutor(at_once, thread_name_prefix="verify") as pool:
        to_come = iter(shards)
        ahead: deque[Future[ShardChecked]] = deque()
        try:
            for shard in islice(to_come, 2 * at_once):
                ahead.append(pool.submit(check_shard, store, shard))
            while ahead:
                yield ahead.popleft().result()
                for shard in islice(to_come, 1):
                    ahead.append(pool.submit(check_shard, store, shard))
        finally:
            for future in ahead:
                future.cancel()
