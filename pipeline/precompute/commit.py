"""From a shard plan to a committed shard: compute, upload, then the receipt."""

import importlib.metadata
import platform
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from ldznet.frozen_ldm import FrozenLDM
from pipeline.cache.entry import encode_columns, encode_entry
from pipeline.cache.plan import ShardPlan
from pipeline.cache.receipt import Environment, LeftOut, Receipt, commit_receipt, read_receipt
from pipeline.cache.shard import ShardWriter, upload_shard
from pipeline.cache.spec import CacheSpec
from pipeline.datasets.sample import bounded_reader
from pipeline.object_store.store import ObjectStore
from pipeline.precompute.computation import ComputedSample, ShardComputation
from pipeline.precompute.networks import Networks
from pipeline.precompute.scratch import Scratch, shard_folder
from pipeline.precompute.watch import ShardWatch

_RECORDED_LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "pillow", "safetensors")


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedShard:
    """A finished tar on local disk, and the members that are not in it."""

    tar: ShardWriter
    left_out: Sequence[LeftOut]


def commit_shard(
    plan: ShardPlan,
    *,
    spec: CacheSpec,
    ldm: FrozenLDM | Networks,
    data: ObjectStore,
    store: ObjectStore,
    watch: ShardWatch | None = None,
    decoders: int = 2,
) -> Receipt:
    """Compute and commit one shard, or adopt the receipt of whoever was first.

    Payload first, marker last: killed anywhere, there is either no receipt or a whole shard behind it.

    Args:
        plan: the shard.
        spec: the numeric specification.
        ldm: the frozen LDM; as `Networks` where several shards share it.
        data: where images and masks are.
        store: the cache.
        watch: told how far it is.
        decoders: threads that decode.
    """
    standing = read_receipt(store, cache_key=spec.key, shard_id=plan.shard_id)
    if standing is not None:
        return standing
    watch = watch or ShardWatch()
    with ExitStack() as stack:
        networks = ldm if isinstance(ldm, Networks) else stack.enter_context(Networks(ldm))
        folder = stack.enter_context(shard_folder())
        packed = pack_shard(
            plan, spec=spec, networks=networks, data=data, folder=folder, watch=watch, decoders=decoders
        )
        with watch.stage("uploading"):
            object_key = upload_shard(store, packed.tar, cache_key=spec.key, shard_id=plan.shard_id)
            receipt = describe_shard(
                plan, packed, object_key=object_key, environment=environment(networks.ldm)
            )
            return commit_receipt(store, cache_key=spec.key, receipt=receipt)


def pack_shard(
    plan: ShardPlan,
    *,
    spec: CacheSpec,
    networks: Networks,
    data: ObjectStore,
    folder: Path,
    watch: ShardWatch,
    decoders: int = 2,
) -> PackedShard:
    """Compute a shard into a tar in `folder`. Nothing is visible to anyone yet."""
    with Scratch(folder / "scratch") as scratch:
        computation = ShardComputation(
            spec, networks=networks, scratch=scratch, watch=watch, decoders=decoders
        )
        with watch.stage("decoding"):
            left_out = computation.decode(plan.members, bounded_reader(data))
        with watch.stage("computing"), ShardWriter(folder / "shard.tar") as tar:
            for sample in computation.samples():
                tar.write(sample.entry.key, encode_sample(spec, sample))
                watch.computed()
    return PackedShard(tar=tar, left_out=left_out)


def encode_sample(spec: CacheSpec, sample: ComputedSample) -> dict[str, bytes]:
    """A sample's files by extension, or those of further blocks alone where the specification says `columns`."""
    features = spec.features
    assert features.stored_from is None, "a converted cache is made from its source, not computed"
    if spec.content == "columns":
        return encode_columns(
            sample.entry, stored_dtype=features.stored_dtype, scale_group=features.scale_group
        )
    files = encode_entry(sample.entry, stored_dtype=features.stored_dtype, scale_group=features.scale_group)
    if sample.image_png is not None:
        files["image.png"] = sample.image_png
    return files


def describe_shard(
    plan: ShardPlan, packed: PackedShard, *, object_key: str, environment: Environment
) -> Receipt:
    """The receipt of a shard that has been uploaded."""
    return Receipt(
        shard_id=plan.shard_id,
        object_key=object_key,
        sha256=packed.tar.sha256,
        size=packed.tar.size,
        samples=tuple(packed.tar.spans),
        left_out=tuple(packed.left_out),
        environment=environment,
        draw=plan.draw,
    )


def environment(ldm: FrozenLDM) -> Environment:
    """What computes here: device kind, the processor's model and library versions."""
    versions = {name: importlib.metadata.version(name) for name in _RECORDED_LIBRARIES}
    on_gpu = ldm.device.type == "cuda"
    processor = torch.cuda.get_device_name(ldm.device) if on_gpu else _cpu_model()
    return Environment(device=str(ldm.device.type), processor=processor, versions=versions)


@cache
def _cpu_model() -> str:
    """Such as `AMD EPYC 9R14`, with the vector instructions that torch uses on it."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(named or [platform.machine()])[0]}, {torch.backends.cpu.get_cpu_capability()}"
