"""A cache of several draws made of random numbers; its entries tell their draw and number."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unit.pipeline.cache.made_cache import SPEC, make_entry, manifest_of, write_shard

from pipeline.cache.entry import Entry
from pipeline.cache.manifest import Manifest
from pipeline.cache.receipt import Environment, Receipt, commit_receipt
from pipeline.cache.shard import upload_shard
from pipeline.object_store.store import ObjectStore


def make_draw(draw: int, samples: int) -> list[Entry]:
    """One draw of so many samples, in key order."""
    made = (make_entry(1000 * draw + number) for number in range(samples))
    return sorted((replace(one, facts={**one.facts, "draw": draw}) for one in made), key=lambda one: one.key)


def write_draws(store: ObjectStore, folder: Path, *, samples: Sequence[int], per_shard: int) -> Manifest:
    """A whole cache with so many samples in each draw, its shards in the order of their names."""
    receipts = [
        _commit(store, folder, entries[start : start + per_shard], draw)
        for draw, count in enumerate(samples)
        for entries in [make_draw(draw, count)]
        for start in range(0, count, per_shard)
    ]
    return manifest_of(store, *sorted(receipts, key=lambda receipt: receipt.object_key))


def _commit(store: ObjectStore, folder: Path, entries: list[Entry], draw: int) -> Receipt:
    writer = write_shard(folder / "shard.tar", entries)
    shard_id = hashlib.sha256("".join(entry.key for entry in entries).encode()).hexdigest()[:32]
    receipt = Receipt(
        shard_id=shard_id,
        object_key=upload_shard(store, writer, cache_key=SPEC.key, shard_id=shard_id),
        sha256=writer.sha256,
        size=writer.size,
        samples=tuple(writer.spans),
        left_out=(),
        environment=Environment(device="cpu", versions={}),
        draw=draw,
    )
    return commit_receipt(store, cache_key=SPEC.key, receipt=receipt)
