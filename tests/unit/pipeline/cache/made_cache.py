"""A cache made of random numbers: the real shards, receipts and manifest, without a frozen LDM."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from pipeline.cache.committed_shard import CommittedShard
from pipeline.cache.entry import Entry, encode_entry
from pipeline.cache.manifest import Manifest, write_manifest
from pipeline.cache.receipt import Environment, LeftOut, Receipt, commit_receipt
from pipeline.cache.shard import ShardWriter, upload_shard
from pipeline.cache.spec import CacheSpec, FeaturesConfig, PolicyConfig
from pipeline.object_store.store import ObjectStore

SPEC = CacheSpec(ldm_digest="d" * 64, features=FeaturesConfig(blocks=(6, 8)), policy=PolicyConfig())


def make_entry(number: int, *, with_image: bool = False) -> Entry:
    """The number-th entry: always the same one."""
    key = hashlib.sha256(f"entry {number}".encode()).hexdigest()[:32]
    generator = torch.Generator().manual_seed(number)
    pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Entry(
        key=key,
        latents=torch.randn(4, 2, 2, generator=generator),
        context=torch.randn(77, 4, generator=generator),
        features={
            6: torch.randn(8, 2, 2, generator=generator),
            8: torch.randn(8, 1, 1, generator=generator),
        },
        mask=pixels[..., 0] > 127,
        facts={"phrase": f"phrase {number} ünïcode", "timestep": 400, "number": number},
        image=pixels if with_image else None,
    )


def make_entries(count: int, *, with_image: bool = False) -> list[Entry]:
    """So many entries in key order."""
    return sorted((make_entry(number, with_image=with_image) for number in range(count)), key=lambda e: e.key)


def write_shard(path: Path, entries: list[Entry]) -> ShardWriter:
    """A shard in a local file; the closed writer tells its hash and spans."""
    with ShardWriter(path) as writer:
        for entry in entries:
            writer.write(entry.key, encode_entry(entry, stored_dtype="fp32"))
    return writer


def commit(
    store: ObjectStore, folder: Path, entries: list[Entry], left_out: tuple[LeftOut, ...] = ()
) -> Receipt:
    """One committed shard."""
    writer = write_shard(folder / "shard.tar", entries)
    shard_id = hashlib.sha256("".join(entry.key for entry in entries).encode()).hexdigest()[:32]
    object_key = upload_shard(store, writer, cache_key=SPEC.key, shard_id=shard_id)
    receipt = Receipt(
        shard_id=shard_id,
        object_key=object_key,
        sha256=writer.sha256,
        size=writer.size,
        samples=tuple(writer.spans),
        left_out=left_out,
        environment=Environment(device="cpu", versions={}),
    )
    return commit_receipt(store, cache_key=SPEC.key, receipt=receipt)


def write_cache(
    store: ObjectStore, folder: Path, *, samples: int, per_shard: int, with_image: bool = False
) -> Manifest:
    """A whole cache of so many samples."""
    entries = make_entries(samples, with_image=with_image)
    receipts = [
        commit(store, folder, sorted(entries[start :: -(-samples // per_shard)], key=lambda e: e.key))
        for start in range(-(-samples // per_shard))
    ]
    return manifest_of(store, *receipts)


def manifest_of(store: ObjectStore, *receipts: Receipt) -> Manifest:
    """The manifest of committed shards."""
    shards = [CommittedShard.from_receipts(receipt) for receipt in receipts]
    return write_manifest(store, spec=SPEC, dataset="made", split="train", shards=shards)
