"""Checking one shard: its object by size and SHA-256, its receipt, and the index rows that lead into it."""

import hashlib
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import xxhash

from ldznet.config import Config
from pipeline.cache import layout
from pipeline.cache.committed_shard import ShardReference
from pipeline.cache.index import Index, member_key, rows_of
from pipeline.cache.receipt import Receipt, read_receipt
from pipeline.object_store.faults import UnavailableObjectError
from pipeline.object_store.store import ObjectStore

READ_BYTES: Final = 8 << 20  # held a shard while it is hashed
_NAMED_SAMPLES = 3

What = Literal[
    "gone",
    "cut",
    "damaged",
    "unreadable",
    "receipt gone",
    "receipt damaged",
    "receipt of another object",
    "index differs",
    "leads nowhere",
]


class Fault(Config):
    """Something of a cache that is not as it was written."""

    object_key: str
    what: What
    detail: str
    shard: ShardReference | None = None  # where a shard is at fault: the way its manifest names it


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardToCheck:
    """A shard as a manifest names it, and its rows of the manifest's index (None: the index cannot be read)."""

    reference: ShardReference
    rows: Index | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardChecked:
    """What came of it."""

    reference: ShardReference
    faults: tuple[Fault, ...]
    read: int  # bytes


def check_shard(store: ObjectStore, shard: ShardToCheck) -> ShardChecked:
    """Everything about one shard. Reads it piece by piece; a broken one twice, to tell which samples are hit.

    Raises:
        UserError: the store does not answer at all, or refuses us.
    """
    reference = shard.reference
    try:
        about_receipt = _check_receipt(store, shard)
        about_object, read = _check_object(store, shard)
    except OSError as error:
        fault = Fault(object_key=reference.object_key, what="unreadable", detail=str(error), shard=reference)
        return ShardChecked(reference=reference, faults=(fault,), read=0)
    return ShardChecked(reference=reference, faults=(*about_object, *about_receipt), read=read)


def _check_object(store: ObjectStore, shard: ShardToCheck) -> tuple[tuple[Fault, ...], int]:
    reference = shard.reference

    def fault(what: What, detail: str) -> tuple[Fault, ...]:
        return (Fault(object_key=reference.object_key, what=what, detail=detail, shard=reference),)

    info = store.stat(reference.object_key)
    if info is None:
        return fault("gone", f"{reference.samples} samples, {reference.size} bytes"), 0
    if info.size < reference.size:
        return fault("cut", f"{info.size} of {reference.size} bytes are there"), 0
    if info.size > reference.size:
        return fault("damaged", f"{info.size} bytes are there, {reference.size} were written"), 0
    try:
        if readings := _readings_until_sound(store, reference):
            return (), readings * reference.size
        return fault("damaged", _hit_samples(store, shard)), 2 * reference.size
    except KeyError:
        return fault("gone", "it was removed while it was being checked"), 0


def hash_object(store: ObjectStore, reference: ShardReference) -> str:
    """SHA-256 of a shard's object, read piece by piece. `KeyError` where it is gone."""
    hasher = hashlib.sha256()
    for start in range(0, reference.size, READ_BYTES):
        length = min(READ_BYTES, reference.size - start)
        hasher.update(store.get_range(reference.object_key, start=start, length=length))
    return hasher.hexdigest()


def is_sound(store: ObjectStore, reference: ShardReference) -> bool:
    """Whether the object is there, whole and unchanged."""
    info = store.stat(reference.object_key)
    if info is None or info.size != reference.size:
        return False
    try:
        return _readings_until_sound(store, reference) > 0
    except KeyError:
        return False


def _readings_until_sound(store: ObjectStore, reference: ShardReference) -> int:
    """Which reading gave the object as it was written; 0: neither did.

    A bit that flipped on its way to us is right the second time.
    """
    return next((reading for reading in (1, 2) if hash_object(store, reference) == reference.sha256), 0)


def _hit_samples(store: ObjectStore, shard: ShardToCheck) -> str:
    if shard.rows is None:
        return "its SHA-256 is not the receipt's"
    hit = [
        member_key(shard.rows, row)
        for row in range(len(shard.rows))
        if _sample_hash(store, shard.reference, shard.rows[row]) != int(shard.rows["xxh3"][row])
    ]
    if not hit:
        return "its SHA-256 is not the receipt's; every sample is sound, so it is the end of the tar"
    more = ", …" if len(hit) > _NAMED_SAMPLES else ""
    return f"{len(hit)} of {len(shard.rows)} samples are hit: {', '.join(hit[:_NAMED_SAMPLES])}{more}"


def _sample_hash(store: ObjectStore, reference: ShardReference, row: np.void) -> int:
    start, size = int(row["offset"]), int(row["size"])
    if start + size > reference.size:
        return -1
    return xxhash.xxh3_64_intdigest(store.get_range(reference.object_key, start=start, length=size))


def _check_receipt(store: ObjectStore, shard: ShardToCheck) -> tuple[Fault, ...]:
    reference = shard.reference
    receipt_key = layout.receipt_key(reference.cache_key, reference.shard_id)

    def fault(what: What, detail: str) -> tuple[Fault, ...]:
        return (Fault(object_key=receipt_key, what=what, detail=detail, shard=reference),)

    try:
        receipt = read_receipt(store, cache_key=reference.cache_key, shard_id=reference.shard_id)
    except UnavailableObjectError:
        raise
    except OSError as error:
        return fault("receipt damaged", str(error))
    if receipt is None:
        return fault("receipt gone", f"of {reference.object_key}")
    if _facts(receipt) != (reference.object_key, reference.sha256, reference.size, reference.samples):
        return fault(
            "receipt of another object", f"{receipt.object_key}; the manifest: {reference.object_key}"
        )
    if shard.rows is not None and not _same_rows(shard.rows, rows_of(receipt.samples)):
        return fault("index differs", "its rows in the manifest's index are not the receipt's")
    return ()


def _facts(receipt: Receipt) -> tuple[str, str, int, int]:
    return receipt.object_key, receipt.sha256, receipt.size, len(receipt.samples)


def _same_rows(ours: Index, theirs: Index) -> bool:
    return all(np.array_equal(ours[name], theirs[name]) for name in ("key", "offset", "size", "xxh3"))


def rows_digest(rows: Index | None) -> int | None:
    """Equal for rows that lead to the same places, whatever the shard's number. None where there are none."""
    if rows is None:
        return None
    return xxhash.xxh3_64_intdigest(
        b"".join(rows[name].tobytes() for name in ("key", "offset", "size", "xxh3"))
    )
