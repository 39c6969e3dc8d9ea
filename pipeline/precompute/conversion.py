"""A shard in another stored type: read from the cache, written anew, nothing computed."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.cache import layout
from pipeline.cache.committed_shard import CommittedShard
from pipeline.cache.entry import Entry, encode_entry
from pipeline.cache.receipt import Receipt, commit_receipt, read_receipt
from pipeline.cache.sample_reading import read_samples
from pipeline.cache.shard import ShardWriter, upload_shard
from pipeline.cache.spec import CacheSpec
from pipeline.object_store.store import ObjectStore
from pipeline.precompute.scratch import shard_folder

_SAMPLES_A_READ = 8


def convert_shard(source: CommittedShard, *, spec: CacheSpec, shard_id: str, store: ObjectStore) -> Receipt:
    """Commit the shard of `spec` that holds what `source` holds, or adopt the receipt of whoever was first.

    Where the source holds exactly what was computed, these are the bytes of a direct computation.
    """
    standing = read_receipt(store, cache_key=spec.key, shard_id=shard_id)
    if standing is not None:
        return standing
    with shard_folder() as folder:
        tar = pack_conversion(source, spec=spec, store=store, folder=folder)
        upload_shard(store, tar, cache_key=spec.key, shard_id=shard_id)
        receipt = describe_conversion(source, tar, spec=spec, shard_id=shard_id)
        return commit_receipt(store, cache_key=spec.key, receipt=receipt)


def pack_conversion(
    source: CommittedShard, *, spec: CacheSpec, store: ObjectStore, folder: Path
) -> ShardWriter:
    """Write the shard into a tar in `folder`. Nothing is visible to anyone yet."""
    features = spec.features
    with ShardWriter(folder / "shard.tar") as tar:
        for entry in _entries(source, spec, store):
            files = encode_entry(entry, stored_dtype=features.stored_dtype, scale_group=features.scale_group)
            tar.write(entry.key, files)
    return tar


def describe_conversion(
    source: CommittedShard, tar: ShardWriter, *, spec: CacheSpec, shard_id: str
) -> Receipt:
    """The receipt of a shard that has been converted and uploaded."""
    return Receipt(
        shard_id=shard_id,
        object_key=layout.shard_key(spec.key, shard_id, tar.sha256),
        sha256=tar.sha256,
        size=tar.size,
        samples=tuple(tar.spans),
        left_out=source.left_out,
        environment=source.environment,
        converted_from=source.reference.object_key,
        draw=source.reference.draw,
    )


def _entries(source: CommittedShard, spec: CacheSpec, store: ObjectStore) -> Iterator[Entry]:
    for start in range(0, len(source.rows), _SAMPLES_A_READ):
        yield from read_samples(
            store,
            source.reference,
            rows=source.rows[start : start + _SAMPLES_A_READ],
            column_rows=[rows[start : start + _SAMPLES_A_READ] for rows in source.column_rows],
            blocks=spec.features.blocks,
        )
