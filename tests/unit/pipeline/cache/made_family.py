"""Specifications that share shards, made of random numbers: samples, columns of further blocks, what nobody names."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unit.pipeline.cache.made_cache import make_entries, write_shard

from pipeline.cache import layout
from pipeline.cache.committed_shard import CommittedShard
from pipeline.cache.entry import Entry
from pipeline.cache.manifest import Manifest, answer_request, write_manifest
from pipeline.cache.receipt import Environment, LeftOut, Receipt, commit_receipt
from pipeline.cache.relation import column_spec, with_blocks
from pipeline.cache.shard import upload_shard
from pipeline.cache.spec import CacheSpec, FeaturesConfig, PolicyConfig
from pipeline.object_store.store import ObjectStore
from pipeline.views import ViewConfig

SMALL = CacheSpec(ldm_digest="d" * 64, features=FeaturesConfig(blocks=(6, 8)), policy=PolicyConfig())
LARGE = with_blocks(SMALL, (6, 8, 9))
COLUMN = column_spec(LARGE, (9,))
OTHER = CacheSpec(
    ldm_digest="d" * 64,
    features=FeaturesConfig(blocks=(6,), stored_dtype="int8"),
    policy=PolicyConfig(view=ViewConfig(size=128)),
)
CPU = Environment(device="cpu", processor="the first", versions={"torch": "2"})


def commit(
    store: ObjectStore,
    folder: Path,
    entries: Sequence[Entry],
    *,
    spec: CacheSpec = SMALL,
    left_out: tuple[LeftOut, ...] = (),
    environment: Environment = CPU,
) -> Receipt:
    """One committed shard of a specification."""
    writer = write_shard(folder / "shard.tar", list(entries))
    name = spec.key + "".join(entry.key for entry in entries)
    shard_id = hashlib.sha256(name.encode()).hexdigest()[:32]
    receipt = Receipt(
        shard_id=shard_id,
        object_key=upload_shard(store, writer, cache_key=spec.key, shard_id=shard_id),
        sha256=writer.sha256,
        size=writer.size,
        samples=tuple(writer.spans),
        left_out=left_out,
        environment=environment,
    )
    return commit_receipt(store, cache_key=spec.key, receipt=receipt)


def name(
    store: ObjectStore,
    *shards: CommittedShard,
    spec: CacheSpec = SMALL,
    split: str = "train",
    request: str | None = None,
) -> Manifest:
    """The manifest of these shards, and a request that leads to it."""
    manifest = write_manifest(store, spec=spec, dataset="made", split=split, shards=shards)
    if request is not None:
        answer_request(store, request, manifest, run_id="run")
    return manifest


@dataclass(frozen=True, kw_only=True)
class Family:
    """SMALL with three shards; LARGE takes two of them over with columns, and adds a fourth; OTHER is unrelated."""

    small: Manifest
    large: Manifest
    other: Manifest
    receipts: tuple[Receipt, ...]  # SMALL's
    columns: tuple[Receipt, ...]
    fresh: Receipt  # LARGE's own


def write_family(store: ObjectStore, folder: Path) -> Family:
    """The whole family on a store."""
    entries = make_entries(12)
    left_out = (
        LeftOut(key="1" * 32, image="a.png", phrase="a cat", why="failed", reason="no image"),
        LeftOut(key="2" * 32, image="b.png", phrase="a dog", why="filtered", reason="outside the view"),
        LeftOut(key="3" * 32, image="c.png", phrase="a cow", why="filtered", reason="outside the view"),
    )
    receipts = (
        commit(store, folder, entries[:3], left_out=left_out),
        commit(store, folder, entries[3:6]),
        commit(store, folder, entries[6:9]),
    )
    columns = tuple(commit(store, folder, entries[at : at + 3], spec=COLUMN) for at in (0, 3))
    store.create(layout.spec_key(COLUMN.key), COLUMN.canonical().encode())
    fresh = commit(store, folder, entries[9:], spec=LARGE)
    small = [CommittedShard.from_receipts(receipt) for receipt in receipts]
    large = [CommittedShard.from_receipts(receipts[at], [columns[at]]) for at in (0, 1)]
    return Family(
        small=name(store, *small, request="aa"),
        large=name(store, *large, CommittedShard.from_receipts(fresh), spec=LARGE, request="bb"),
        other=name(
            store,
            CommittedShard.from_receipts(commit(store, folder, entries[:2], spec=OTHER)),
            spec=OTHER,
            split="val",
            request="cc",
        ),
        receipts=receipts,
        columns=columns,
        fresh=fresh,
    )
