"""The local cache: the store's very bytes, never above its limit, and what fits stays."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from unit.pipeline.cache.made_cache import make_entries, write_cache
from unit.pipeline.loading.counting_store import CountingStore

from ldznet.errors import UserError
from pipeline.cache.index import INDEX_DTYPE
from pipeline.cache.manifest import Manifest
from pipeline.loading.loader import CacheLoader, SampleReader
from pipeline.loading.local_cache import LocalCache
from pipeline.loading.sample_order import Position
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore

SAMPLES = 24


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ObjectStore, Manifest]:
    folder = tmp_path_factory.mktemp("made")
    store = open_store(folder / "store")
    return store, write_cache(store, folder, samples=SAMPLES, per_shard=6)


@pytest.fixture
def counting(made: tuple[ObjectStore, Manifest]) -> CountingStore:
    return CountingStore(made[0])


def read_epoch(store: object, manifest: Manifest, cache: LocalCache, *, epoch: int = 0) -> list[str]:
    reader = SampleReader(store=store, manifest=manifest, nearer=cache)  # type: ignore[arg-type]
    entries = {entry.key: entry for entry in make_entries(SAMPLES)}
    keys = []
    for batch in CacheLoader(reader=reader, batch_size=4, window=3).epoch(Position(epoch=epoch)):
        keys += batch.keys
        for row, key in enumerate(batch.keys):
            assert torch.equal(batch.latents[row], entries[key].latents)
            assert torch.equal(batch.features[8][row], entries[key].features[8])
    return keys


def files(folder: Path) -> list[Path]:
    return [path for path in (folder / "samples").rglob("*") if path.is_file()]


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in [*files(folder), *(folder / "incoming").iterdir()])


def test_what_was_read_once_is_read_here(
    made: tuple[ObjectStore, Manifest], counting: CountingStore, tmp_path: Path
) -> None:
    cache = LocalCache(tmp_path / "cache", limit=1 << 30)
    first = read_epoch(counting, made[1], cache)
    assert counting.ranges
    counting.ranges.clear()
    # Another order, other windows, another process' view of it: not one request.
    again = LocalCache(tmp_path / "cache", limit=1 << 30)
    assert set(read_epoch(counting, made[1], again, epoch=3)) == set(first)
    assert not counting.ranges
    assert cache.used == on_disk(tmp_path / "cache")


def test_gaps_alone_are_fetched(
    made: tuple[ObjectStore, Manifest], counting: CountingStore, tmp_path: Path
) -> None:
    store, manifest = made
    cache = LocalCache(tmp_path / "cache", limit=1 << 30)
    reader = SampleReader(store=counting, manifest=manifest, nearer=cache)  # type: ignore[arg-type]
    reader.read_run(np.array([2]))
    counting.ranges.clear()
    keys = [entry.key for entry in reader.read_run(np.arange(6))]
    assert keys == [
        entry.key for entry in SampleReader(store=store, manifest=manifest).read_run(np.arange(6))
    ]
    sizes = reader.index["size"].astype(int)
    assert [length for _, _, length in counting.ranges] == [sizes[:2].sum(), sizes[3:6].sum()]


@pytest.mark.parametrize("harm", ["flipped", "cut", "emptied", "longer"])
def test_a_damaged_file_is_thrown_away_and_fetched_again(
    made: tuple[ObjectStore, Manifest], counting: CountingStore, tmp_path: Path, harm: str
) -> None:
    cache = LocalCache(tmp_path / "cache", limit=1 << 30)
    read_epoch(counting, made[1], cache)
    counting.ranges.clear()
    victim = files(tmp_path / "cache")[7]
    body = bytearray(victim.read_bytes())
    sound = bytes(body)
    body[len(body) // 2] ^= 1
    harmed = {"flipped": bytes(body), "cut": sound[:-600], "emptied": b"", "longer": sound + b"x"}
    victim.write_bytes(harmed[harm])
    read_epoch(counting, made[1], cache, epoch=1)
    assert len(counting.ranges) == 1
    assert victim.read_bytes() == sound


def test_a_stale_sample_is_never_read(
    made: tuple[ObjectStore, Manifest], counting: CountingStore, tmp_path: Path
) -> None:
    """The same place of the same object, with other content: as after a repair."""
    cache = LocalCache(tmp_path / "cache", limit=1 << 30)
    reader = SampleReader(store=made[0], manifest=made[1])
    run = reader.run(np.array([0]))
    cache.write(run.shard, run.rows[0], memoryview(b"x" * int(run.rows[0]["size"])))
    other = run.shard.model_copy(update={"sha256": "0" * 64})
    assert cache.read(other, run.rows[0]) is None
    read_epoch(counting, made[1], cache)  # and what was written under the right name was wrong: thrown away


def make_row(number: int, size: int) -> np.void:
    row = np.zeros(1, INDEX_DTYPE)
    row["offset"], row["size"] = number * size, size
    return row[0]


def test_the_limit_holds_and_the_least_recently_used_goes_first(
    made: tuple[ObjectStore, Manifest], tmp_path: Path
) -> None:
    shard, folder = made[1].shards[0], tmp_path / "cache"
    body = memoryview(b"s" * 1000)
    earlier = LocalCache(folder, limit=10_000)
    rows = [make_row(number, 1000) for number in range(15)]
    for number, row in enumerate(rows[:10]):
        row["xxh3"] = _digest(body)
        earlier.write(shard, row, body)
        os.utime(earlier._path(shard, row), (number, number))
    assert on_disk(folder) == earlier.used == 10_000
    later = LocalCache(folder, limit=10_000)
    for number in (0, 3):
        assert later.read(shard, rows[number]) is not None  # used again: they stay
    for row in rows[10:]:
        row["xxh3"] = _digest(body)
        later.write(shard, row, body)
        assert on_disk(folder) <= 10_000
    there = [number for number, row in enumerate(rows) if later.read(shard, row) is not None]
    assert there == [0, 3, 7, 8, 9, 10, 11, 12, 13, 14]


def _digest(body: memoryview) -> np.uint64:
    import xxhash

    return np.uint64(xxhash.xxh3_64_intdigest(body))


def test_an_epoch_larger_than_the_cache_keeps_what_fits(
    made: tuple[ObjectStore, Manifest], counting: CountingStore, tmp_path: Path
) -> None:
    """Least recently used alone would drop each sample just before its turn."""
    manifest = made[1]
    limit = manifest.size // 2
    cache = LocalCache(tmp_path / "cache", limit=limit)
    read_epoch(counting, manifest, cache)
    assert limit * 0.8 < on_disk(tmp_path / "cache") <= limit
    kept = len(files(tmp_path / "cache"))
    fetched = []
    for epoch in (1, 2):
        counting.ranges.clear()
        read_epoch(counting, manifest, cache, epoch=epoch)
        fetched.append(sum(length for _, _, length in counting.ranges))
        assert on_disk(tmp_path / "cache") <= limit
    assert all(one < manifest.size - limit * 0.8 for one in fetched)
    assert len(files(tmp_path / "cache")) == kept


def test_a_sample_larger_than_the_limit_leaves_the_others(
    made: tuple[ObjectStore, Manifest], tmp_path: Path
) -> None:
    small = make_row(0, 100)
    small["xxh3"] = _digest(memoryview(b"s" * 100))
    LocalCache(tmp_path / "cache", limit=1000).write(made[1].shards[0], small, memoryview(b"s" * 100))
    cache = LocalCache(tmp_path / "cache", limit=1000)
    cache.write(made[1].shards[0], make_row(1, 2000), memoryview(b"x" * 2000))
    assert cache.read(made[1].shards[0], small) is not None


def test_a_folder_that_cannot_be_written_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"loader.local_cache=.*file/cache cannot be used"):
        LocalCache(tmp_path / "file" / "cache", limit=1)


def test_a_disk_that_cannot_be_read_costs_only_time(
    made: tuple[ObjectStore, Manifest],
    counting: CountingStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = LocalCache(tmp_path / "cache", limit=1 << 30)
    first = read_epoch(counting, made[1], cache)
    gets = len(counting.ranges)

    def broken(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    assert read_epoch(counting, made[1], cache) == first
    assert len(counting.ranges) == 2 * gets
    assert caplog.text.count("cannot be read") == 1


def test_on_a_read_only_disk_samples_are_read_all_the_same(
    made: tuple[ObjectStore, Manifest],
    counting: CountingStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = LocalCache(tmp_path / "cache", limit=1 << 30)
    first = read_epoch(counting, made[1], cache)
    gets = len(counting.ranges)

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", read_only)
    assert read_epoch(counting, made[1], cache) == first
    assert len(counting.ranges) == gets
