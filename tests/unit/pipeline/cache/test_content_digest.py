"""Content digests: remembered between runs, and read again where an object changed."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldznet.errors import UserError
from pipeline.cache import content_digest
from pipeline.cache.content_digest import MISSING, ContentDigests, absent, memory_path
from pipeline.datasets.masks import FileMask
from pipeline.datasets.sample import Sample
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectInfo, ObjectStore


class CountingStore:
    """A store that notes what is read."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.url = store.url
        self.reads: Counter[str] = Counter()
        self.looks: Counter[str] = Counter()
        self.lists: Counter[str] = Counter()

    def get(self, key: str) -> bytes:
        self.reads[key] += 1
        return self._store.get(key)

    def stat(self, key: str) -> ObjectInfo | None:
        self.looks[key] += 1
        return self._store.stat(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self.lists[prefix] += 1
        return self._store.list(prefix)


@pytest.fixture
def counting(tmp_path: Path) -> CountingStore:
    store = open_store(tmp_path / "data")
    store.put("images/a.jpg", b"a")
    store.put("images/b.jpg", b"b")
    return CountingStore(store)


def digests(store: CountingStore, path: Path) -> ContentDigests:
    return ContentDigests(store=store, path=path)  # type: ignore[arg-type]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_second_run_reads_nothing(counting: CountingStore, tmp_path: Path) -> None:
    memory = tmp_path / "memory.sqlite"
    first = digests(counting, memory)
    assert [first("images/a.jpg"), first("images/a.jpg"), first("images/b.jpg")] == [
        sha(b"a"),
        sha(b"a"),
        sha(b"b"),
    ]
    assert counting.reads == {"images/a.jpg": 1, "images/b.jpg": 1}
    first.save()
    second = digests(counting, memory)
    assert second("images/a.jpg") == sha(b"a")
    assert counting.reads["images/a.jpg"] == 1


def test_a_changed_object_is_read_again(counting: CountingStore, tmp_path: Path) -> None:
    memory = tmp_path / "memory.sqlite"
    first = digests(counting, memory)
    first("images/a.jpg")
    first("images/b.jpg")
    first.save()
    path = tmp_path / "data/images/a.jpg"
    path.write_bytes(b"c")  # of the same size
    second = digests(counting, memory)
    assert [second("images/a.jpg"), second("images/b.jpg")] == [sha(b"c"), sha(b"b")]
    assert counting.reads == {"images/a.jpg": 2, "images/b.jpg": 1}
    second.save()
    assert digests(counting, memory)("images/a.jpg") == sha(b"c")
    assert counting.reads["images/a.jpg"] == 2


def test_same_time_and_another_size_is_a_change(counting: CountingStore, tmp_path: Path) -> None:
    memory = tmp_path / "memory.sqlite"
    first = digests(counting, memory)
    first("images/a.jpg")
    first.save()
    path = tmp_path / "data/images/a.jpg"
    times = path.stat()
    path.write_bytes(b"longer")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert digests(counting, memory)("images/a.jpg") == sha(b"longer")


def test_stores_do_not_mix(counting: CountingStore, tmp_path: Path) -> None:
    memory = tmp_path / "memory.sqlite"
    first = digests(counting, memory)
    first("images/a.jpg")
    first.save()
    other = open_store(tmp_path / "other")
    other.put("images/a.jpg", b"z")
    assert digests(CountingStore(other), memory)("images/a.jpg") == sha(b"z")


def test_what_is_missing_is_looked_for_again(counting: CountingStore, tmp_path: Path) -> None:
    memory = tmp_path / "memory.sqlite"
    first = digests(counting, memory)
    assert first("images/none.jpg") == absent(MISSING, "images/none.jpg") != first("images/other.jpg")
    first.save()
    (tmp_path / "data/images/none.jpg").write_bytes(b"now")
    assert digests(counting, memory)("images/none.jpg") == sha(b"now")


def test_a_memory_that_cannot_be_kept_names_the_mend(counting: CountingStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        digests(counting, tmp_path / "file" / "memory.sqlite")
    (tmp_path / "memory.sqlite").write_bytes(b"this is no database, but long enough to be looked at" * 20)
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        digests(counting, tmp_path / "memory.sqlite")


def test_a_memory_that_breaks_later_costs_time_alone(
    counting: CountingStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = digests(counting, tmp_path / "memory.sqlite")
    one._memory.close()
    assert one("images/a.jpg") == sha(b"a")
    one.save()
    assert "cannot be read, so objects are" in caplog.text
    assert "are not remembered" in caplog.text


def test_memory_lies_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert memory_path() == tmp_path / "ldznet" / "digests.sqlite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert memory_path() == tmp_path / "home" / ".cache" / "ldznet" / "digests.sqlite"


def test_samples_far_more_than_fit_are_learnt_from_one_listing(
    counting: CountingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content_digest, "_AHEAD", 50)
    monkeypatch.setattr(content_digest, "_LIST_FROM", 40)
    monkeypatch.setattr(content_digest, "_SESSION", 60)
    store = open_store(tmp_path / "data")
    for number in range(200):
        store.put(f"masks/{number}.png", f"mask {number}".encode())
    samples = [
        Sample(
            image_id="a",
            label_id=str(number),
            image="images/a.jpg",
            phrase="p",
            mask=FileMask(key=f"masks/{number}.png"),
            split="train",
        )
        for number in range(210)
    ]
    memory = tmp_path / "memory.sqlite"
    for reads in (1, 0):
        counting.reads.clear()
        counting.looks.clear()
        learning = digests(counting, memory)
        passed = [(sample, sample.mask.identity(learning)) for sample in learning.ahead(samples)]
        learning.save()
        assert [sample for sample, _ in passed] == samples
        for number, (_, identity) in enumerate(passed):
            content = (
                sha(f"mask {number}".encode()) if number < 200 else absent(MISSING, f"masks/{number}.png")
            )
            assert identity == f"file:{content}"
        assert counting.reads["masks/7.png"] == reads
        assert not any(key.startswith("masks/") for key in counting.looks)
    assert counting.lists == {"masks/": 2}
