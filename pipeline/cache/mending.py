"""Mending what a verification found: a shard's object and receipt, a receipt alone, a manifest.

Every step replaces only what was looked at (`If-None-Match`, `If-Match`), so two that mend the same do no harm.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.cache import layout
from pipeline.cache.committed_shard import CommittedShard, ShardReference
from pipeline.cache.index import Index, member_key
from pipeline.cache.manifest import (
    Manifest,
    answer_request,
    is_sound_part,
    largest_size,
    read_answer,
    write_manifest,
)
from pipeline.cache.receipt import Receipt, SampleSpan, read_receipt, read_receipts
from pipeline.cache.sealed import BrokenSealError, seal
from pipeline.cache.shard_check import is_sound
from pipeline.object_store.faults import UnavailableObjectError
from pipeline.object_store.store import ObjectStore

_TRIES = 8  # against others that mend the same shard


@dataclass(frozen=True, kw_only=True, slots=True)
class Mended:
    """What became of a shard.

    `sound`: nothing was wrong. `put back`: the object is again what its receipt vouches for. `receipt`: the object was
    sound, its receipt is new. `replaced`: other bytes came out, so the receipt names another object, and manifests
    that name the old one need `renew_manifest`.
    """

    receipt: Receipt
    how: Literal["sound", "put back", "receipt", "replaced"]
    difference: str = ""  # of the machine that computed it first and this one, for people to read


def mend_shard(store: ObjectStore, *, tar: Path, fresh: Receipt) -> Mended:
    """Put a shard right, given its tar computed anew.

    Args:
        store: the cache.
        tar: the shard's local file.
        fresh: the receipt that describes it.

    Raises:
        OSError: others kept changing the shard meanwhile.
    """
    cache_key = layout.cache_key_of(fresh.object_key)
    receipt_key = layout.receipt_key(cache_key, fresh.shard_id)
    for _ in range(_TRIES):
        before = store.stat(receipt_key)
        standing = _readable_receipt(store, cache_key=cache_key, shard_id=fresh.shard_id)
        other = standing is not None and standing.object_key != fresh.object_key
        if standing and other and is_sound(store, _named_by(standing)):
            return Mended(receipt=standing, how="sound")  # somebody else has mended it
        written = _put_object(store, tar, fresh)
        if standing is not None and not other:
            return Mended(receipt=standing, how="put back" if written else "sound")
        if before is None:
            done = store.create(receipt_key, seal(fresh))
        else:
            done = store.replace(receipt_key, seal(fresh), etag=before.etag)
        if done:
            difference = standing.environment.difference(fresh.environment) if standing else ""
            return Mended(receipt=fresh, how="replaced" if other else "receipt", difference=difference)
    raise OSError(f"{store.url}/{receipt_key} kept changing: is another repair at work?")


def _named_by(receipt: Receipt) -> ShardReference:
    return CommittedShard.from_receipts(receipt).reference


def _readable_receipt(store: ObjectStore, *, cache_key: str, shard_id: str) -> Receipt | None:
    try:
        return read_receipt(store, cache_key=cache_key, shard_id=shard_id)
    except UnavailableObjectError:
        raise
    except OSError:  # damaged: like one that is gone
        return None


def _put_object(store: ObjectStore, tar: Path, fresh: Receipt) -> bool:
    """See that the object is there and sound. False where it was."""
    for _ in range(_TRIES):
        info = store.stat(fresh.object_key)
        if info is None:
            if store.create(fresh.object_key, tar):
                return True
        elif is_sound(store, _named_by(fresh)):
            return False
        elif store.replace(fresh.object_key, tar, etag=info.etag):
            return True
    raise OSError(f"{store.url}/{fresh.object_key} kept changing: is another repair at work?")


def restore_receipt(store: ObjectStore, shard: CommittedShard) -> Receipt:
    """The receipt of a shard whose object is sound, made again of what its manifest says. Computes nothing.

    Whether the shard was converted from one in another stored type is forgotten.
    """
    reference = shard.reference
    receipt = Receipt(
        shard_id=reference.shard_id,
        object_key=reference.object_key,
        sha256=reference.sha256,
        size=reference.size,
        samples=_spans(shard.rows),
        left_out=shard.left_out,
        environment=shard.environment,
        draw=reference.draw,
    )
    key = layout.receipt_key(reference.cache_key, reference.shard_id)
    for _ in range(_TRIES):
        before = store.stat(key)
        standing = _readable_receipt(store, cache_key=reference.cache_key, shard_id=reference.shard_id)
        if standing is not None:
            return standing
        if before is None and store.create(key, seal(receipt)):
            return receipt
        if before is not None and store.replace(key, seal(receipt), etag=before.etag):
            return receipt
    raise OSError(f"{store.url}/{key} kept changing: is another repair at work?")


def _spans(rows: Index) -> tuple[SampleSpan, ...]:
    return tuple(
        SampleSpan(
            key=member_key(rows, row),
            offset=int(rows["offset"][row]),
            size=int(rows["size"][row]),
            xxh3=f"{int(rows['xxh3'][row]):016x}",
        )
        for row in range(len(rows))
    )


def renew_manifest(store: ObjectStore, manifest: Manifest) -> Manifest:
    """The manifest of the same shards by their receipts, as they are now; bad parts are written again.

    Where a receipt names another object than before, that is another manifest: requests lead to it from now on, and
    the old one, which names what is gone, is removed.

    Raises:
        OSError: a receipt is gone or damaged.
    """
    parts = (manifest.index, *manifest.column_indexes, manifest.left_out)
    bad = [part for part in parts if not is_sound_part(store, part, at_most=largest_size(manifest, part))]
    _remove(store, [part.key for part in bad])
    _remove(store, [layout.shard_list_key(manifest.cache_key, manifest.manifest_id)])
    receipts = _receipts_of(store, manifest)
    renewed = write_manifest(
        store,
        spec=manifest.spec,
        dataset=manifest.dataset,
        split=manifest.split,
        shards=[
            CommittedShard.from_receipts(
                receipts[shard.cache_key, shard.shard_id],
                [receipts[column.cache_key, column.shard_id] for column in shard.columns],
            )
            for shard in manifest.shards
        ],
    )
    if renewed.manifest_id != manifest.manifest_id:
        _redirect(store, manifest, renewed)
    return renewed


def _receipts_of(store: ObjectStore, manifest: Manifest) -> dict[tuple[str, str], Receipt]:
    wanted: dict[str, set[str]] = {}
    for shard in manifest.shards:
        for part in (shard, *shard.columns):
            wanted.setdefault(part.cache_key, set()).add(part.shard_id)
    receipts = {}
    for cache_key, ids in wanted.items():
        ordered = sorted(ids)
        for shard_id, receipt in zip(
            ordered, read_receipts(store, cache_key=cache_key, shard_ids=ordered), strict=True
        ):
            if receipt is None:
                raise OSError(
                    f"{store.url}/{layout.receipt_key(cache_key, shard_id)} is gone: repair its shard"
                )
            receipts[cache_key, shard_id] = receipt
    return receipts


def _redirect(store: ObjectStore, old: Manifest, new: Manifest) -> None:
    """Requests first, then the old manifest, then its parts: killed anywhere, no request leads nowhere."""
    for info in store.list(layout.REQUEST_PREFIX):
        try:
            answer = read_answer(store, info.key)
        except (KeyError, BrokenSealError):  # gone since, or damaged, which `verify` tells
            continue
        if (answer.cache_key, answer.manifest_id) == (old.cache_key, old.manifest_id):
            digest = info.key.removeprefix(layout.REQUEST_PREFIX).removesuffix(".json")
            answer_request(store, digest, new, run_id=answer.run_id)
    parts = [key for key in old.object_keys if key.startswith(layout.manifest_prefix(old.cache_key))]
    _remove(store, [layout.manifest_key(old.cache_key, old.manifest_id), *parts])


def _remove(store: ObjectStore, keys: Iterable[str]) -> None:
    for key in keys:
        store.delete(key)
