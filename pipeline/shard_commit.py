"""From a shard plan to a committed shard: compute, upload, then the receipt."""

import importlib.metadata
import tempfile
from pathlib import Path

from ldznet.frozen_ldm import FrozenLDM
from pipeline.cache.entry import encode_entry
from pipeline.cache.plan import ShardPlan
from pipeline.cache.receipt import Environment, Receipt, commit_receipt, read_receipt
from pipeline.cache.shard import ShardWriter, upload_shard
from pipeline.cache.spec import CacheSpec
from pipeline.object_store.store import ObjectStore
from pipeline.shard_compute import compute_entries, prepare

_RECORDED_LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "pillow", "safetensors")


def commit_shard(
    plan: ShardPlan, *, spec: CacheSpec, ldm: FrozenLDM, data: ObjectStore, store: ObjectStore
) -> Receipt:
    """Compute and commit one shard, or adopt the receipt of whoever was first.

    Payload first, marker last: killed anywhere, there is either no receipt or a whole shard behind it.
    """
    cache_key = spec.key
    standing = read_receipt(store, cache_key=cache_key, shard_id=plan.shard_id)
    if standing is not None:
        return standing
    prepared, left_out = prepare(spec, plan.members, data.get)
    with tempfile.TemporaryDirectory(prefix="ldznet-shard-") as folder:
        with ShardWriter(Path(folder) / "shard.tar") as writer:
            for entry in compute_entries(spec, prepared, ldm):
                writer.write(entry.key, encode_entry(entry, stored_dtype=spec.features.stored_dtype))
        object_key = upload_shard(store, writer, cache_key=cache_key, shard_id=plan.shard_id)
    receipt = Receipt(
        shard_id=plan.shard_id,
        object_key=object_key,
        sha256=writer.sha256,
        size=writer.size,
        samples=tuple(writer.spans),
        left_out=tuple(left_out),
        environment=environment(ldm),
    )
    return commit_receipt(store, cache_key=cache_key, receipt=receipt)


def environment(ldm: FrozenLDM) -> Environment:
    """What computes here: device kind and library versions."""
    versions = {name: importlib.metadata.version(name) for name in _RECORDED_LIBRARIES}
    return Environment(device=str(ldm.device.type), versions=versions)
