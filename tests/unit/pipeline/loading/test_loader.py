"""The loader: each sample once for any number of ranks, exact resumption, and no flipped byte let through."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.pipeline.cache.made_cache import SPEC, make_entries, write_cache

from pipeline.cache import layout
from pipeline.cache.manifest import Manifest
from pipeline.cache.sample_reading import CorruptSampleError
from pipeline.loading.batch import Batch
from pipeline.loading.collate import collate
from pipeline.loading.loader import CacheLoader, SampleReader
from pipeline.loading.sample_order import Position
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore

SAMPLES, PER_SHARD = 23, 7


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ObjectStore, Manifest]:
    folder = tmp_path_factory.mktemp("made")
    store = open_store(folder / "store")
    return store, write_cache(store, folder, samples=SAMPLES, per_shard=PER_SHARD)


class CountingStore:
    """A store that notes ranged GETs."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.ranges: list[tuple[str, int, int]] = []
        self.url = store.url

    def get(self, key: str, *, at_most: int | None = None) -> bytes:
        return self._store.get(key, at_most=at_most)

    def get_range(self, key: str, *, start: int, length: int) -> bytes:
        self.ranges.append((key, start, length))
        return self._store.get_range(key, start=start, length=length)

    def get_range_into(self, key: str, *, start: int, buffers: Sequence[memoryview]) -> None:
        self.ranges.append((key, start, sum(buffer.nbytes for buffer in buffers)))
        self._store.get_range_into(key, start=start, buffers=buffers)


def loader(made: tuple[ObjectStore, Manifest], **options: object) -> CacheLoader:
    store, manifest = made
    reader = SampleReader(store=store, manifest=manifest)
    return CacheLoader(reader=reader, **{"batch_size": 8, "window": 3, **options})  # type: ignore[arg-type]


def real_keys(batch: Batch) -> list[str]:
    return [key for key, weight in zip(batch.keys, batch.weight.tolist(), strict=True) if weight]


def rows_of(batches: Iterator[Batch]) -> list[tuple[str, float, float]]:
    """Keys, weights and a number of the tensors: what must be equal where batches are to be equal."""
    return [
        (key, weight, float(latents.sum()) + float(mask.sum()))
        for batch in batches
        for key, weight, latents, mask in zip(
            batch.keys, batch.weight.tolist(), batch.latents, batch.masks, strict=True
        )
    ]


def test_each_sample_once_with_its_own_tensors(made: tuple[ObjectStore, Manifest]) -> None:
    entries = {entry.key: entry for entry in make_entries(SAMPLES)}
    seen: list[str] = []
    for batch in loader(made, remainder="pad").epoch(Position()):
        assert batch.latents.shape == (8, 4, 2, 2)
        assert batch.masks.shape == (8, 1, 16, 16)
        assert batch.images is None
        for row, key in enumerate(batch.keys):
            entry = entries[key]
            assert torch.equal(batch.latents[row], entry.latents)
            assert torch.equal(batch.context[row], entry.context)
            assert all(torch.equal(batch.features[block][row], entry.features[block]) for block in (6, 8))
            assert np.array_equal(batch.masks[row, 0].numpy() > 0, entry.mask)
            assert batch.facts[row] == entry.facts
        seen += real_keys(batch)
    assert sorted(seen) == sorted(entries)


def test_padding_weighs_nothing(made: tuple[ObjectStore, Manifest]) -> None:
    whole = loader(made, remainder="pad")
    *full, last = whole.epoch(Position())
    assert len(whole) == 3
    assert all(batch.weight.tolist() == [1] * 8 for batch in full)
    assert last.weight.tolist() == [1] * 7 + [0]
    assert last.keys[7] == last.keys[6]
    assert len(loader(made, remainder="drop")) == 2


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("remainder", ["drop", "pad"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_together_see_what_one_sees(
    ranks: int, remainder: str, shuffle: bool, made: tuple[ObjectStore, Manifest]
) -> None:
    options = {"remainder": remainder, "shuffle": shuffle, "seed": 5}
    alone = list(loader(made, **options).epoch(Position(epoch=1)))
    shares = [
        list(loader(made, rank=rank, ranks=ranks, **options).epoch(Position(epoch=1)))
        for rank in range(ranks)
    ]
    assert {len(share) for share in shares} == {len(alone)}
    for number, whole in enumerate(alone):
        parts = [share[number] for share in shares]
        assert [key for part in parts for key in real_keys(part)] == real_keys(whole)
        assert torch.cat([part.weight for part in parts]).tolist() == whole.weight.tolist()


def test_a_rank_left_with_padding_alone_still_has_its_batch(made: tuple[ObjectStore, Manifest]) -> None:
    # 23 samples in batches of 20: of the last batch's 3, the fourth of five ranks gets none.
    batches = list(loader(made, batch_size=20, rank=4, ranks=5, remainder="pad").epoch(Position()))
    assert batches[-1].weight.tolist() == [0] * 4
    assert batches[-1].latents.shape == batches[0].latents.shape


@settings(max_examples=20)
@given(epoch=st.integers(0, 3), batch=st.integers(0, 3), ranks=st.sampled_from([1, 2, 4]))
def test_resuming_gives_the_rest_exactly(
    made: tuple[ObjectStore, Manifest], epoch: int, batch: int, ranks: int
) -> None:
    for rank in range(ranks):
        one = loader(made, rank=rank, ranks=ranks, remainder="pad")
        whole = rows_of(one.epoch(Position(epoch=epoch)))
        rest = rows_of(one.epoch(Position(epoch=epoch, batch=batch)))
        assert rest == whole[batch * 8 // ranks :]


def test_epochs_and_seeds_differ_and_repeat(made: tuple[ObjectStore, Manifest]) -> None:
    def keys(seed: int, epoch: int) -> list[tuple[str, float, float]]:
        return rows_of(loader(made, seed=seed).epoch(Position(epoch=epoch)))

    assert keys(0, 0) == keys(0, 0)
    assert len({str(keys(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_neighbours_come_by_one_ranged_get(made: tuple[ObjectStore, Manifest]) -> None:
    store, manifest = made
    counting = CountingStore(store)
    reader = SampleReader(store=counting, manifest=manifest)  # type: ignore[arg-type]
    list(CacheLoader(reader=reader, batch_size=SAMPLES, shuffle=False).epoch(Position()))
    assert len(counting.ranges) == len(manifest.shards)
    counting.ranges.clear()
    list(CacheLoader(reader=reader, batch_size=SAMPLES, window=3).epoch(Position()))
    assert len(manifest.shards) < len(counting.ranges) <= 3 * len(manifest.shards) + 4
    assert sum(length for _, _, length in counting.ranges) <= manifest.size


def test_an_epoch_that_is_left_early_leaves_no_threads(made: tuple[ObjectStore, Manifest]) -> None:
    import threading

    batches = loader(made).epoch(Position())
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_a_flipped_byte_is_named_with_its_sample_and_shard(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    manifest = write_cache(store, tmp_path, samples=9, per_shard=3)
    reader = SampleReader(store=store, manifest=manifest)
    row = 4
    span, shard = reader.index[row], manifest.shards[int(reader.index["shard"][row])]
    data = bytearray(store.get(shard.object_key))
    for place in (
        int(span["offset"]),
        int(span["offset"]) + 700,
        int(span["offset"]) + int(span["size"]) - 1,
    ):
        data[place] ^= 1
        store.put(shard.object_key, bytes(data))
        with pytest.raises(CorruptSampleError) as error:
            list(CacheLoader(reader=reader, batch_size=3).epoch(Position()))
        key = bytes(span["key"]).ljust(16, b"\0").hex()
        assert f"sample {key} in {store.url}/{shard.object_key}" in str(error.value)
        data[place] ^= 1
    store.put(shard.object_key, bytes(data))
    assert len(list(CacheLoader(reader=reader, batch_size=3).epoch(Position()))) == 3


def test_a_shard_cut_short_or_gone_is_told(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    manifest = write_cache(store, tmp_path, samples=6, per_shard=3)
    shard = manifest.shards[1].object_key
    store.put(shard, store.get(shard)[:2048])
    reader = SampleReader(store=store, manifest=manifest)
    with pytest.raises(OSError, match="before the range asked for"):
        list(CacheLoader(reader=reader, batch_size=6).epoch(Position()))
    store.delete(shard)
    with pytest.raises(CorruptSampleError, match=f"{shard} is gone"):
        list(CacheLoader(reader=reader, batch_size=6).epoch(Position()))


def test_a_damaged_index_is_told(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    manifest = write_cache(store, tmp_path, samples=6, per_shard=3)
    index = bytearray(store.get(manifest.index.key))
    index[3] ^= 1
    store.put(manifest.index.key, bytes(index))
    with pytest.raises(OSError, match="its SHA-256 is not the manifest's"):
        SampleReader(store=store, manifest=manifest)
    store.delete(manifest.index.key)
    with pytest.raises(OSError, match="is gone"):
        SampleReader(store=store, manifest=manifest)


def test_on_s3_too(s3_url: str, tmp_path: Path, made: tuple[ObjectStore, Manifest]) -> None:
    store = open_store(s3_url)
    manifest = write_cache(store, tmp_path, samples=SAMPLES, per_shard=PER_SHARD)
    assert manifest == made[1]
    assert rows_of(loader((store, manifest)).epoch(Position())) == rows_of(loader(made).epoch(Position()))
    listed = store.get(layout.shard_list_key(SPEC.key, manifest.manifest_id)).decode().splitlines()
    assert listed == [f"{s3_url}/{shard.object_key}" for shard in manifest.shards]


def test_a_batch_size_that_does_not_divide_is_refused(made: tuple[ObjectStore, Manifest]) -> None:
    with pytest.raises(ValueError, match="does not divide among 3 ranks"):
        loader(made, ranks=3)


def test_images_come_along_where_they_are_kept() -> None:
    batch = collate(make_entries(2, with_image=True), size=3, samples=2)
    assert batch.images is not None
    assert batch.images.shape == (3, 3, 16, 16)
    assert batch.images.min() >= -1
    assert batch.images.max() <= 1
    assert batch.weight.tolist() == [1, 1, 0]


def test_checksums_are_those_of_the_stretch(made: tuple[ObjectStore, Manifest]) -> None:
    store, manifest = made
    reader = SampleReader(store=store, manifest=manifest)
    assert reader.index.dtype.itemsize == 40
    for span in reader.index:
        shard = manifest.shards[int(span["shard"])].object_key
        stretch = store.get_range(shard, start=int(span["offset"]), length=int(span["size"]))
        assert xxhash.xxh3_64_intdigest(stretch) == int(span["xxh3"])
