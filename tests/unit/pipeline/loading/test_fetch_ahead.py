"""What is fetched ahead: bounded in number and in bytes, by requests of a bounded size, wherever an epoch begins."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from unit.pipeline.cache.made_cache import write_cache
from unit.pipeline.loading.counting_store import CountingStore

from pipeline.cache.index import INDEX_DTYPE
from pipeline.cache.manifest import Manifest, read_index
from pipeline.loading import loader as loader_module
from pipeline.loading import mapped_index
from pipeline.loading.batch_plan import SampleRun
from pipeline.loading.loader import CacheLoader, SampleReader
from pipeline.loading.sample_order import Position
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore

SAMPLES = 48


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ObjectStore, Manifest]:
    folder = tmp_path_factory.mktemp("made")
    store = open_store(folder / "store")
    return store, write_cache(store, folder, samples=SAMPLES, per_shard=12)


def sample_bytes(manifest: Manifest) -> int:
    return manifest.size // manifest.samples


class GatedStore(CountingStore):
    """Answers ranged GETs only when it is told to, and counts those that wait."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store)
        self.gate = threading.Event()
        self.waiting = 0
        self._change = threading.Condition()

    def get_range(self, key: str, *, start: int, length: int) -> bytes:
        self._wait()
        return super().get_range(key, start=start, length=length)

    def get_range_into(self, key: str, *, start: int, buffers: Sequence[memoryview]) -> None:
        self._wait()
        super().get_range_into(key, start=start, buffers=buffers)

    def _wait(self) -> None:
        with self._change:
            self.waiting += 1
            self._change.notify_all()
        self.gate.wait(60)

    def await_requests(self, number: int) -> None:
        with self._change:
            assert self._change.wait_for(lambda: self.waiting >= number, 60)


@pytest.mark.parametrize(
    ("options", "batches"),
    [
        ({"batches_ahead": 3}, 4),  # the one that is asked for, and three
        ({"batches_ahead": 1}, 2),
        ({"batches_ahead": 20, "ahead_bytes": 0}, 1),  # one at least
        ({"batches_ahead": 20, "ahead_bytes": 1 << 30}, 12),  # all there are
    ],
)
def test_so_many_batches_are_on_their_way(
    made: tuple[ObjectStore, Manifest], options: dict[str, int], batches: int
) -> None:
    store = GatedStore(made[0])
    reader = SampleReader(store=store, manifest=made[1])  # type: ignore[arg-type]
    # 12 samples of a shard, unshuffled: a batch of 4 is one request.
    loader = CacheLoader(reader=reader, batch_size=4, shuffle=False, concurrency=32, **options)
    first = threading.Thread(target=lambda: next(loader.epoch(Position())))
    first.start()
    store.await_requests(batches)
    store.gate.set()
    first.join(60)
    assert not first.is_alive()
    assert store.waiting == batches


def test_bytes_bound_it_too(made: tuple[ObjectStore, Manifest]) -> None:
    store, manifest = made
    four = 4 * sample_bytes(manifest)

    def held(ahead_bytes: int) -> list[int]:
        counting = CountingStore(store)
        reader = SampleReader(store=counting, manifest=manifest)  # type: ignore[arg-type]
        loader = CacheLoader(
            reader=reader, batch_size=4, window=2, batches_ahead=100, ahead_bytes=ahead_bytes
        )
        given, most = 0, []
        for _ in loader.epoch(Position()):
            given += four
            asked = sum(length for _, _, length in counting.ranges)
            most.append(asked - given)
        return most

    assert max(held(3 * four + four // 2)) <= 3 * four
    assert max(held(0)) <= four // 2  # samples differ a little in size


def test_long_runs_are_several_requests_side_by_side(
    made: tuple[ObjectStore, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, manifest = made
    monkeypatch.setattr(loader_module, "_LARGEST_GET", 3 * sample_bytes(manifest) + 600)
    counting = CountingStore(store)
    reader = SampleReader(store=counting, manifest=manifest)  # type: ignore[arg-type]
    list(CacheLoader(reader=reader, batch_size=12, shuffle=False).epoch(Position()))
    assert len(counting.ranges) >= 16
    assert sum(length for _, _, length in counting.ranges) == int(reader.index["size"].sum())
    assert max(length for _, _, length in counting.ranges) <= 5 * sample_bytes(manifest)


def test_parts_of_a_run_are_the_run(made: tuple[ObjectStore, Manifest]) -> None:
    store, manifest = made
    run = SampleReader(store=store, manifest=manifest).run(np.arange(12))
    for most in (1, 3 * sample_bytes(manifest), 1 << 40):
        parts = list(run.parts(most=most))
        assert np.array_equal(np.concatenate([part.rows for part in parts]), run.rows)
        assert sum(part.size for part in parts) == run.size
    assert len(list(run.parts(most=1))) == 12
    assert isinstance(parts[0], SampleRun)
    assert len(parts) == 1


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_the_first_batch_asks_for_no_more_wherever_it_lies(
    made: tuple[ObjectStore, Manifest], share: float
) -> None:
    counting = CountingStore(made[0])
    reader = SampleReader(store=counting, manifest=made[1])  # type: ignore[arg-type]
    loader = CacheLoader(reader=reader, batch_size=2, window=2, batches_ahead=2)
    batches = loader.epoch(Position(batch=int(share * len(loader))))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert len(counting.ranges) <= 3 * 2


def in_folder(folder: Path, s3_url: str) -> ObjectStore:
    return open_store(folder / "store")


def on_s3(folder: Path, s3_url: str) -> ObjectStore:
    return open_store(s3_url)


@pytest.mark.parametrize("place", [in_folder, on_s3])
def test_a_large_index_is_mapped_and_checked(
    place: Callable[[Path, str], ObjectStore],
    tmp_path: Path,
    s3_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mapped_index, "_SMALL", 100)
    monkeypatch.setattr(mapped_index, "_PIECE", 200)
    store = place(tmp_path, s3_url)
    manifest = write_cache(store, tmp_path, samples=20, per_shard=6)
    mapped = mapped_index.map_index(store, manifest)
    assert np.array_equal(mapped, read_index(store, manifest))
    assert mapped.dtype == INDEX_DTYPE
    assert not mapped.flags.owndata
    loader = CacheLoader(reader=SampleReader(store=store, manifest=manifest), batch_size=5)
    assert len({key for batch in loader.epoch(Position()) for key in batch.keys}) == 20
    body = bytearray(store.get(manifest.index.key))
    body[333] ^= 1
    store.put(manifest.index.key, bytes(body))
    with pytest.raises(OSError, match="its SHA-256 is not the manifest's"):
        mapped_index.map_index(store, manifest)
    store.put(manifest.index.key, bytes(body[:-40]))
    with pytest.raises(OSError, match=r"its SHA-256 is not the manifest's|ends before"):
        mapped_index.map_index(store, manifest)
    store.delete(manifest.index.key)
    with pytest.raises(OSError, match="is gone"):
        mapped_index.map_index(store, manifest)
