"""Receipts: the first one stands, others adopt it, damage is told."""

import concurrent.futures
from pathlib import Path

import pytest
from unit.pipeline.cache.made_cache import SPEC, commit, make_entries

from pipeline.cache import layout
from pipeline.cache.receipt import commit_receipt, read_receipt
from pipeline.cache.sealed import seal
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore


def test_the_first_receipt_stands(store: ObjectStore, tmp_path: Path) -> None:
    first = commit(store, tmp_path, make_entries(3))
    assert read_receipt(store, cache_key=SPEC.key, shard_id=first.shard_id) == first
    second = first.model_copy(update={"object_key": layout.shard_key(SPEC.key, "a" * 32, "b" * 64)})
    assert commit_receipt(store, cache_key=SPEC.key, receipt=second) == first
    assert read_receipt(store, cache_key=SPEC.key, shard_id=first.shard_id) == first


def test_racing_writers_agree_on_one_receipt(store: ObjectStore, tmp_path: Path) -> None:
    first = commit(store, tmp_path, make_entries(2))
    rivals = [
        first.model_copy(
            update={"shard_id": "raced", "object_key": layout.shard_key(SPEC.key, f"{n:032x}", "b" * 64)}
        )
        for n in range(8)
    ]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda r: commit_receipt(store, cache_key=SPEC.key, receipt=r), rivals))
    assert len({result.object_key for result in results}) == 1
    assert read_receipt(store, cache_key=SPEC.key, shard_id="raced") == results[0]


def test_no_receipt_no_shard(store: ObjectStore) -> None:
    assert read_receipt(store, cache_key=SPEC.key, shard_id="none") is None


def test_a_damaged_receipt_is_told(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    receipt = commit(store, tmp_path, make_entries(2))
    key = layout.receipt_key(SPEC.key, receipt.shard_id)
    store.put(key, store.get(key)[:-5])
    with pytest.raises(OSError, match="is damaged"):
        read_receipt(store, cache_key=SPEC.key, shard_id=receipt.shard_id)
    store.put(key, seal(receipt.model_copy(update={"shard_id": "x"})))
    with pytest.raises(OSError, match="speaks of another shard, x"):
        read_receipt(store, cache_key=SPEC.key, shard_id=receipt.shard_id)
