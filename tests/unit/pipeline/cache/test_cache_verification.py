"""Verification: every kind of damage is found and named, what is sound is not, and memory stays bounded."""

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from unit.pipeline.cache.made_cache import make_entries
from unit.pipeline.cache.made_family import LARGE, SMALL, Family, commit, name, write_family

from pipeline.cache import layout, shard_check
from pipeline.cache.committed_shard import CommittedShard
from pipeline.cache.index import member_key
from pipeline.cache.manifest import largest_size, read_index
from pipeline.cache.receipt import Receipt
from pipeline.cache.sealed import seal
from pipeline.cache.verification import Verification, count_shards, verify, verify_manifest
from pipeline.object_store.faults import UnavailableObjectError
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(tmp_path / "store")


@pytest.fixture
def made(store: ObjectStore, tmp_path: Path) -> Family:
    return write_family(store, tmp_path)


def told(found: Verification) -> set[tuple[str, str]]:
    return {(fault.what, fault.object_key) for fault in found.faults}


def flip(store: ObjectStore, key: str, at: int) -> None:
    body = bytearray(store.get(key))
    body[at] ^= 1
    store.put(key, bytes(body))


def test_a_sound_cache_has_no_faults(store: ObjectStore, made: Family) -> None:
    done: list[int] = []
    found = verify(store, progress=done.append)
    assert found.faults == ()
    assert found.shards == found.shards_in_all == sum(done) == count_shards(store) == 7
    assert found.manifests == 3
    assert found.read == sum(info.size for info in store.list() if info.key.endswith(".tar"))


DAMAGES: dict[str, tuple[str, Callable[[ObjectStore, Receipt], None]]] = {
    "gone": ("gone", lambda store, receipt: store.delete(receipt.object_key)),
    "cut": (
        "cut",
        lambda store, receipt: store.put(receipt.object_key, store.get(receipt.object_key)[:-1]),
    ),
    "empty": ("cut", lambda store, receipt: store.put(receipt.object_key, b"")),
    "longer": (
        "damaged",
        lambda store, receipt: store.put(receipt.object_key, store.get(receipt.object_key) + b"\0"),
    ),
    "first bit": ("damaged", lambda store, receipt: flip(store, receipt.object_key, 0)),
    "last bit": ("damaged", lambda store, receipt: flip(store, receipt.object_key, -1)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_shard_is_named(damage: str, store: ObjectStore, made: Family) -> None:
    what, hit = DAMAGES[damage]
    for receipt in (made.receipts[0], made.columns[1]):
        hit(store, receipt)
    found = verify(store, at_once=2)
    assert told(found) == {(what, made.receipts[0].object_key), (what, made.columns[1].object_key)}
    assert {fault.shard.shard_id for fault in found.faults if fault.shard} == {
        made.receipts[0].shard_id,
        made.columns[1].shard_id,
    }


def test_samples_that_are_hit_are_named(store: ObjectStore, made: Family) -> None:
    receipt = made.receipts[1]
    flip(store, receipt.object_key, receipt.samples[2].offset + 700)
    (fault,) = verify(store, cache_key=SMALL.key).faults
    assert fault.detail == f"1 of 3 samples are hit: {receipt.samples[2].key}"
    index = read_index(store, made.small)
    assert member_key(index, 5) == receipt.samples[2].key


def test_a_bit_in_the_tars_end_hits_no_sample(store: ObjectStore, made: Family) -> None:
    flip(store, made.fresh.object_key, -1)
    (fault,) = verify(store).faults
    assert "every sample is sound" in fault.detail


def test_receipts_are_checked(store: ObjectStore, made: Family) -> None:
    keys = [layout.receipt_key(SMALL.key, receipt.shard_id) for receipt in made.receipts]
    store.delete(keys[0])
    flip(store, keys[1], 200)
    found = verify(store)
    assert told(found) == {("receipt gone", keys[0]), ("receipt damaged", keys[1])}


def test_a_receipt_that_speaks_otherwise_is_told(store: ObjectStore, made: Family) -> None:
    first, second, third = made.receipts
    keys = [layout.receipt_key(SMALL.key, receipt.shard_id) for receipt in made.receipts]
    store.put(keys[0], seal(first.model_copy(update={"object_key": second.object_key})))
    moved = (third.samples[0].model_copy(update={"offset": 512}), *third.samples[1:])
    store.put(keys[2], seal(third.model_copy(update={"samples": moved})))
    assert told(verify(store)) == {("receipt of another object", keys[0]), ("index differs", keys[2])}


def test_parts_of_manifests_are_checked(store: ObjectStore, made: Family) -> None:
    manifest = made.large
    shard_list = layout.shard_list_key(LARGE.key, manifest.manifest_id)
    flip(store, manifest.index.key, 3)
    store.delete(manifest.column_indexes[0].key)
    store.put(manifest.left_out.key, b"")
    store.put(shard_list, b"https://elsewhere/x.tar\n" * 3)
    expected = {
        ("damaged", manifest.index.key),
        ("gone", manifest.column_indexes[0].key),
        ("damaged", manifest.left_out.key),
        ("damaged", shard_list),
    }
    assert told(verify(store)) == expected
    assert {(one.what, one.object_key) for one in verify_manifest(store, manifest)} == expected


def test_manifests_requests_and_specifications_are_checked(store: ObjectStore, made: Family) -> None:
    manifest = layout.manifest_key(SMALL.key, made.small.manifest_id)
    flip(store, manifest, 300)
    flip(store, layout.request_key("aa"), 100)
    store.delete(layout.manifest_key(LARGE.key, made.large.manifest_id))
    store.put(layout.spec_key(LARGE.key), SMALL.canonical().encode())
    assert told(verify(store)) == {
        ("damaged", manifest),
        ("damaged", layout.request_key("aa")),
        ("leads nowhere", layout.request_key("bb")),
        ("damaged", layout.spec_key(LARGE.key)),
    }


def test_a_copied_cache_is_sound(store: ObjectStore, made: Family, tmp_path: Path) -> None:
    copy = open_store(tmp_path / "copy")
    for info in store.list():
        copy.put(info.key, store.get(info.key))
    assert verify(copy).faults == ()


def test_a_share_is_the_same_for_the_same_seed(store: ObjectStore, tmp_path: Path) -> None:
    receipts = [commit(store, tmp_path, [entry]) for entry in make_entries(20)]
    name(store, *(CommittedShard.from_receipts(receipt) for receipt in receipts))
    for receipt in receipts:
        store.delete(receipt.object_key)
    seen = [frozenset(told(verify(store, share=0.25, seed=seed))) for seed in (0, 0, 1, 2)]
    assert [len(one) for one in seen] == [5] * 4
    assert count_shards(store, share=0.25) == 5
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3
    assert len(told(verify(store, share=0.001))) == 1


def test_one_specification_is_checked_alone(store: ObjectStore, made: Family) -> None:
    store.delete(made.receipts[2].object_key)  # which LARGE does not name
    assert verify(store, cache_key=LARGE.key).faults == ()
    assert len(verify(store, cache_key=SMALL.key).faults) == 1


def test_memory_is_a_piece_a_shard(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt = commit(store, tmp_path, make_entries(400))
    name(store, CommittedShard.from_receipts(receipt))
    monkeypatch.setattr(shard_check, "READ_BYTES", 1 << 14)
    assert receipt.size > 40 * shard_check.READ_BYTES
    reference = CommittedShard.from_receipts(receipt).reference
    tracemalloc.start()
    try:
        assert shard_check.hash_object(store, reference) == receipt.sha256
        assert tracemalloc.get_traced_memory()[1] < 4 * shard_check.READ_BYTES
    finally:
        tracemalloc.stop()


@dataclass(frozen=True)
class Flaky:
    """A store whose ranges fail, or have a flipped bit the first time they are read."""

    inner: ObjectStore
    fails: str = ""
    flips: str = ""
    seen: Any = None

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.inner, attribute)

    def get_range(self, key: str, *, start: int, length: int) -> bytes:
        if self.fails and self.fails in key:
            raise UnavailableObjectError(f"{key}: no success in 10 tries")
        data = self.inner.get_range(key, start=start, length=length)
        if self.flips and self.flips in key and key not in self.seen:
            self.seen.add(key)
            return bytes([data[0] ^ 1]) + data[1:]
        return data


def test_a_bit_flipped_on_its_way_is_no_fault(store: ObjectStore, made: Family) -> None:
    flaky: Any = Flaky(store, flips="/shards/", seen=set())
    assert verify(flaky).faults == ()
    assert len(flaky.seen) == 7


def test_a_shard_that_cannot_be_read_is_told(store: ObjectStore, made: Family) -> None:
    flaky: Any = Flaky(store, fails=made.fresh.object_key)
    assert told(verify(flaky)) == {("unreadable", made.fresh.object_key)}


def test_a_store_that_is_away_ends_it(store: ObjectStore, tmp_path: Path) -> None:
    receipts = [commit(store, tmp_path, [entry]) for entry in make_entries(20)]
    name(store, *(CommittedShard.from_receipts(receipt) for receipt in receipts))
    flaky: Any = Flaky(store, fails="/shards/")
    with pytest.raises(OSError, match=r"16 shards in a row cannot be read: .* no success in 10 tries"):
        verify(flaky)


class Counting:
    """Counts the bytes of shards that are read."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.read = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get_range(self, key: str, *, start: int, length: int) -> bytes:
        self.read += length
        return self._store.get_range(key, start=start, length=length)


def test_what_is_sound_is_read_once(store: ObjectStore, made: Family) -> None:
    counting = Counting(store)
    assert verify(counting).read == counting.read > 0  # type: ignore[arg-type]
    assert counting.read == sum(info.size for info in store.list() if info.key.endswith(".tar"))


def test_an_index_may_be_as_large_as_its_manifest_counts(made: Family) -> None:
    manifest = made.small.model_copy(update={"samples": 100 * 345_486})
    assert largest_size(manifest, manifest.index) == 100 * 345_486 * 40
