"""A cache of random numbers in SD 1.4's shapes at 384 px, 1.57 MB a sample in fp16, for benchmarks that read it."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from pipeline.cache.committed_shard import CommittedShard
from pipeline.cache.entry import Entry, encode_entry
from pipeline.cache.manifest import Manifest, write_manifest
from pipeline.cache.receipt import Environment, Receipt, commit_receipt
from pipeline.cache.shard import ShardWriter, upload_shard
from pipeline.cache.spec import CacheSpec, FeaturesConfig, PolicyConfig
from pipeline.object_store.store import ObjectStore

# C,h,w of blocks 6 to 10
SHAPES = {6: (1280, 12, 12), 7: (1280, 6, 6), 8: (1280, 12, 12), 9: (1280, 12, 12), 10: (1280, 12, 12)}
SPEC = CacheSpec(ldm_digest="d" * 64, features=FeaturesConfig(blocks=tuple(SHAPES)), policy=PolicyConfig())


def made_entries(samples: int) -> Iterator[Entry]:
    """Samples in key order, in fp16, each with an uneven round mask of a person's size."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = np.mgrid[:384, :384]
    keys = sorted(hashlib.sha256(f"sample {number}".encode()).hexdigest()[:32] for number in range(samples))
    for number, key in enumerate(keys):
        waves = 1 + 0.2 * np.sin(columns / (7 + number % 11))
        yield Entry(
            key=key,
            latents=torch.randn(4, 48, 48, generator=generator).half(),
            context=torch.randn(77, 768, generator=generator).half(),
            features={
                block: torch.randn(shape, generator=generator).half() for block, shape in SHAPES.items()
            },
            mask=((rows - 200) / 120) ** 2 + ((columns - 190) / 90) ** 2 < waves,
            facts={"phrase": f"phrase {number}", "prompt": f"a photo of a phrase {number}.", "timestep": 400},
        )


def write_cache(store: ObjectStore, folder: Path, *, samples: int, per_shard: int) -> Manifest:
    """A whole cache; `folder` takes a shard at a time meanwhile."""
    entries, shards = made_entries(samples), []
    for first in range(0, samples, per_shard):
        with ShardWriter(folder / "shard.tar") as writer:
            for _ in range(first, min(first + per_shard, samples)):
                entry = next(entries)
                writer.write(entry.key, encode_entry(entry, stored_dtype="fp16"))
        shards.append(CommittedShard.from_receipts(_commit(store, writer)))
        writer.path.unlink()
    return write_manifest(store, spec=SPEC, dataset="made", split="train", shards=shards)


def _commit(store: ObjectStore, writer: ShardWriter) -> Receipt:
    shard_id = writer.sha256[:32]
    object_key = upload_shard(store, writer, cache_key=SPEC.key, shard_id=shard_id)
    receipt = Receipt(
        shard_id=shard_id,
        object_key=object_key,
        sha256=writer.sha256,
        size=writer.size,
        samples=tuple(writer.spans),
        left_out=(),
        environment=Environment(device="cpu", versions={}),
    )
    return commit_receipt(store, cache_key=SPEC.key, receipt=receipt)
