"""Samples that cannot be read: the training stops at the first, or goes on without them, counted and by name."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from unit.pipeline.cache.made_cache import make_entries, write_cache

from pipeline.cache.index import member_key
from pipeline.cache.manifest import Manifest
from pipeline.cache.sample_reading import CorruptSampleError
from pipeline.loading.batch import Batch
from pipeline.loading.loader import CacheLoader, SampleReader
from pipeline.loading.sample_order import Position
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore

SAMPLES = 24


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(tmp_path / "store")


@pytest.fixture
def manifest(store: ObjectStore, tmp_path: Path) -> Manifest:
    return write_cache(store, tmp_path, samples=SAMPLES, per_shard=6)


def flip(store: ObjectStore, manifest: Manifest, row: int) -> str:
    """Change a byte of a sample. Its key."""
    index = SampleReader(store=store, manifest=manifest).index
    key = manifest.shards[int(index["shard"][row])].object_key
    body = bytearray(store.get(key))
    body[int(index["offset"][row]) + int(index["size"][row]) // 2] ^= 4
    store.put(key, bytes(body))
    return member_key(index, row)


def skipping(store: ObjectStore, manifest: Manifest, **options: object) -> CacheLoader:
    usual = {"batch_size": 8, "window": 3, "on_corrupt": "skip", "max_corrupt_share": 1.0}
    reader = SampleReader(store=store, manifest=manifest)
    return CacheLoader(reader=reader, **usual | options)  # type: ignore[arg-type]


def weights(batches: list[Batch]) -> dict[str, float]:
    return {
        key: weight
        for batch in batches
        for key, weight in zip(batch.keys, batch.weight.tolist(), strict=True)
        if weight
    }


def test_a_skipped_sample_weighs_nothing_and_its_neighbours_stay(
    store: ObjectStore, manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    bad = {flip(store, manifest, row) for row in (4, 15)}
    with caplog.at_level(logging.WARNING):
        loader = skipping(store, manifest)
        batches = list(loader.epoch(Position()))
    assert [batch.weight.sum().item() for batch in batches].count(8.0) <= 2
    assert sum(batch.weight.sum().item() for batch in batches) == SAMPLES - 2
    entries = {entry.key: entry for entry in make_entries(SAMPLES)}
    assert set(weights(batches)) == set(entries) - bad
    for batch in batches:
        assert batch.latents.shape[0] == 8
        for row, key in enumerate(batch.keys):
            assert torch.equal(batch.latents[row], entries[key].latents)
    assert set(loader.skipped) == bad
    for key in bad:
        (line,) = [line for line in caplog.messages if f"skipped sample {key}" in line]
        assert loader.skipped[key].object_key in line


def test_the_others_keep_their_order(store: ObjectStore, manifest: Manifest) -> None:
    before = [key for batch in skipping(store, manifest).epoch(Position()) for key in batch.keys]
    bad = flip(store, manifest, 9)
    after = [
        key
        for batch in skipping(store, manifest).epoch(Position())
        for key, weight in zip(batch.keys, batch.weight.tolist(), strict=True)
        if weight
    ]
    assert after == [key for key in before if key != bad]


def test_more_than_the_share_stops(store: ObjectStore, manifest: Manifest) -> None:
    for row in range(3):
        flip(store, manifest, row)
    assert len(list(skipping(store, manifest, max_corrupt_share=0.125).epoch(Position()))) == 3
    with pytest.raises(CorruptSampleError, match=r"of 24 samples .* loader.max_corrupt_share=0.12 allows"):
        list(skipping(store, manifest, max_corrupt_share=0.12).epoch(Position()))
    assert len(list(skipping(store, manifest, max_corrupt_share=0.125).epoch(Position(epoch=1)))) == 3


def test_by_default_the_first_one_fails(store: ObjectStore, manifest: Manifest) -> None:
    key = flip(store, manifest, 20)
    with pytest.raises(CorruptSampleError, match=f"sample {key} in"):
        list(skipping(store, manifest, on_corrupt="fail").epoch(Position()))


def cut(store: ObjectStore, key: str) -> None:
    store.put(key, store.get(key)[:9000])


def remove(store: ObjectStore, key: str) -> None:
    store.delete(key)


@pytest.mark.parametrize("harm", [cut, remove])
def test_a_shard_that_is_cut_or_gone_is_skipped_as_far_as_it_is(
    store: ObjectStore, manifest: Manifest, harm: Callable[[ObjectStore, str], None]
) -> None:
    shard = manifest.shards[1]
    harm(store, shard.object_key)
    loader = skipping(store, manifest)
    batches = list(loader.epoch(Position()))
    index = SampleReader(store=store, manifest=manifest).index
    size = 9000 if harm is cut else 0
    lost = {
        member_key(index, row)
        for row in range(6, 12)
        if int(index["offset"][row]) + int(index["size"][row]) > size
    }
    assert 0 < len(lost) <= 6
    assert set(loader.skipped) == lost
    assert len(weights(batches)) == SAMPLES - len(lost)
    assert {sample.object_key for sample in loader.skipped.values()} == {shard.object_key}


@pytest.mark.parametrize("gone", [0, 1, 3])
def test_a_batch_of_nothing_but_corrupt_samples_still_comes(
    store: ObjectStore, manifest: Manifest, gone: int
) -> None:
    remove(store, manifest.shards[gone].object_key)
    loader = skipping(store, manifest, batch_size=6, shuffle=False)
    batches = list(loader.epoch(Position()))
    assert [batch.weight.sum().item() for batch in batches] == [6 * (batch != gone) for batch in range(4)]
    assert {batch.latents.shape for batch in batches} == {(6, 4, 2, 2)}
    assert len(loader.skipped) == 6


def test_it_comes_first_after_a_resume_as_well(store: ObjectStore, manifest: Manifest) -> None:
    remove(store, manifest.shards[2].object_key)
    loader = skipping(store, manifest, batch_size=6, shuffle=False)
    batches = list(loader.epoch(Position(batch=2)))
    assert [batch.weight.sum().item() for batch in batches] == [0, 6]


def test_where_nothing_can_be_read_it_fails(store: ObjectStore, manifest: Manifest) -> None:
    for shard in manifest.shards:
        remove(store, shard.object_key)
    with pytest.raises(CorruptSampleError, match="no sample of a whole batch can be read"):
        list(skipping(store, manifest).epoch(Position()))
