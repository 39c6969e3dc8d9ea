"""Mending: an object comes back, a receipt is made again, and other bytes make another manifest."""

from pathlib import Path
from typing import Any

import pytest
from unit.pipeline.cache.made_cache import make_entries, write_shard
from unit.pipeline.cache.made_family import COLUMN, CPU, LARGE, SMALL, Family, commit, name, write_family

from pipeline.cache import layout
from pipeline.cache.committed_shard import CommittedShard
from pipeline.cache.manifest import (
    committed_shards,
    find_manifest,
    list_manifests,
    read_manifest,
)
from pipeline.cache.mending import mend_shard, renew_manifest, restore_receipt
from pipeline.cache.receipt import Environment, Receipt, read_receipt
from pipeline.cache.shard import ShardWriter
from pipeline.cache.verification import verify, verify_manifest
from pipeline.object_store.store import ObjectStore
from pipeline.precompute.shard_repair import repair_needs, restore_receipts

GPU = Environment(device="cuda", processor="the second", versions={"torch": "3"})


@pytest.fixture
def made(store: ObjectStore, tmp_path: Path) -> Family:
    return write_family(store, tmp_path)


def again(folder: Path, receipt: Receipt, numbers: slice, *, environment: Environment = CPU) -> Any:
    """The tar of a shard computed anew, and its receipt."""
    tar = write_shard(folder / "again.tar", make_entries(12)[numbers])
    return tar, described(receipt, tar, environment)


def described(receipt: Receipt, tar: ShardWriter, environment: Environment) -> Receipt:
    cache_key = layout.cache_key_of(receipt.object_key)
    return receipt.model_copy(
        update={
            "object_key": layout.shard_key(cache_key, receipt.shard_id, tar.sha256),
            "sha256": tar.sha256,
            "size": tar.size,
            "samples": tuple(tar.spans),
            "environment": environment,
        }
    )


def other_bytes(folder: Path, receipt: Receipt, numbers: slice) -> tuple[ShardWriter, Receipt]:
    """The same samples, rounded otherwise."""
    import dataclasses

    entries = [dataclasses.replace(one, latents=one.latents + 1e-6) for one in make_entries(12)[numbers]]
    tar = write_shard(folder / "other.tar", entries)
    return tar, described(receipt, tar, GPU)


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
def test_the_same_bytes_come_back(damage: str, store: ObjectStore, made: Family, tmp_path: Path) -> None:
    receipt = made.receipts[1]
    body = bytearray(store.get(receipt.object_key))
    if damage == "gone":
        store.delete(receipt.object_key)
    elif damage == "cut":
        store.put(receipt.object_key, bytes(body[:-1]))
    else:
        body[700] ^= 1
        store.put(receipt.object_key, bytes(body))
    etag = store.stat(layout.receipt_key(SMALL.key, receipt.shard_id))
    tar, fresh = again(tmp_path, receipt, slice(3, 6), environment=GPU)
    mended = mend_shard(store, tar=tar.path, fresh=fresh)
    assert (mended.how, mended.receipt) == ("put back", receipt)
    assert store.stat(layout.receipt_key(SMALL.key, receipt.shard_id)) == etag  # the receipt stands
    assert verify(store).faults == ()
    assert mend_shard(store, tar=tar.path, fresh=fresh).how == "sound"


@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_a_receipt_comes_back_with_its_shard(
    damage: str, store: ObjectStore, made: Family, tmp_path: Path
) -> None:
    receipt = made.receipts[1]
    key = layout.receipt_key(SMALL.key, receipt.shard_id)
    store.delete(key)
    if damage == "damaged":
        store.put(key, b"{}")
    tar, fresh = again(tmp_path, receipt, slice(3, 6))
    mended = mend_shard(store, tar=tar.path, fresh=fresh)
    assert (mended.how, mended.receipt) == ("receipt", receipt)
    assert verify(store).faults == ()


@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_a_receipt_is_made_of_the_manifest(damage: str, store: ObjectStore, made: Family) -> None:
    receipt = made.receipts[0]  # some members are left out
    key = layout.receipt_key(SMALL.key, receipt.shard_id)
    body = store.get(key)
    store.delete(key)
    if damage == "damaged":
        store.put(key, b"{}")
    needs = repair_needs(store, made.small, verify_manifest(store, made.small))
    assert (needs.broken, needs.manifest, len(needs.receipts)) == ((), False, 1)
    restore_receipts(store, needs.receipts)
    assert store.get(key) == body
    assert restore_receipt(store, next(iter(committed_shards(store, made.small)))) == receipt


def test_other_bytes_make_another_manifest(store: ObjectStore, made: Family, tmp_path: Path) -> None:
    receipt = made.receipts[0]
    store.delete(receipt.object_key)
    tar, fresh = other_bytes(tmp_path, receipt, slice(0, 3))
    mended = mend_shard(store, tar=tar.path, fresh=fresh)
    assert (mended.how, mended.receipt) == ("replaced", fresh)
    assert mended.difference == ("device cpu and cuda, processor the first and the second, torch 2 and 3")
    assert read_receipt(store, cache_key=SMALL.key, shard_id=receipt.shard_id) == fresh
    for manifest in (made.small, made.large):
        needs = repair_needs(
            store, manifest, [f for f in verify_manifest(store, manifest) if f.what != "gone"]
        )
        assert (needs.broken, needs.receipts, needs.manifest) == ((), (), True)
        renewed = renew_manifest(store, manifest)
        assert renewed.manifest_id != manifest.manifest_id
        assert fresh.object_key in renewed.object_keys
        assert receipt.object_key not in renewed.object_keys
        assert [one.manifest_id for one in list_manifests(store, manifest.cache_key)] == [renewed.manifest_id]
        assert renewed.environments == (GPU, CPU)
    assert find_manifest(store, "aa") == next(list_manifests(store, SMALL.key))
    assert find_manifest(store, "bb") == next(list_manifests(store, LARGE.key))
    assert verify(store).faults == ()
    # Another repair, of a machine like the first, finds it mended.
    tar, old = again(tmp_path, receipt, slice(0, 3))
    assert mend_shard(store, tar=tar.path, fresh=old).receipt == fresh
    assert verify(store).faults == ()


def test_a_broken_column_of_another_specification_is_named(
    store: ObjectStore, made: Family, tmp_path: Path
) -> None:
    column = made.columns[1]
    store.put(column.object_key, b"x" * column.size)
    needs = repair_needs(store, made.large, verify_manifest(store, made.large))
    (broken,) = needs.broken
    assert broken.reference.cache_key == COLUMN.key
    assert broken.member_keys == tuple(entry.key for entry in make_entries(12)[3:6])
    tar, fresh = again(tmp_path, column, slice(3, 6))
    assert mend_shard(store, tar=tar.path, fresh=fresh).how == "put back"
    assert verify(store).faults == ()


def test_members_that_were_left_out_belong_to_a_broken_shard(store: ObjectStore, made: Family) -> None:
    store.delete(made.receipts[0].object_key)
    (broken,) = repair_needs(store, made.small, verify_manifest(store, made.small)).broken
    left_out = {member.key for member in made.receipts[0].left_out}
    assert set(broken.member_keys) == {entry.key for entry in make_entries(12)[:3]} | left_out
    assert list(broken.member_keys) == sorted(broken.member_keys)


def test_parts_of_a_manifest_are_written_again(store: ObjectStore, made: Family) -> None:
    parts = [key for key in made.large.object_keys if "/manifests/" in key]
    bodies = {key: store.get(key) for key in parts}
    for number, key in enumerate(parts):
        if number % 2:
            store.delete(key)
        else:
            store.put(key, b"damaged")
    needs = repair_needs(store, made.large, verify_manifest(store, made.large))
    assert (needs.broken, needs.receipts, needs.manifest) == ((), (), True)
    assert renew_manifest(store, made.large) == made.large
    assert {key: store.get(key) for key in parts} == bodies
    manifest_id = made.large.manifest_id
    assert read_manifest(store, cache_key=LARGE.key, manifest_id=manifest_id) == made.large


def test_two_who_mend_the_same_shard_agree(store: ObjectStore, made: Family, tmp_path: Path) -> None:
    """The other one replaces the receipt just before we do."""
    receipt = made.receipts[2]
    store.delete(receipt.object_key)
    ours_tar, ours = other_bytes(tmp_path, receipt, slice(6, 9))
    theirs_tar = write_shard(tmp_path / "theirs.tar", make_entries(12)[6:8])
    theirs = described(receipt, theirs_tar, CPU)

    class Overtaken:
        def __getattr__(self, attribute: str) -> Any:
            return getattr(store, attribute)

        def replace(self, key: str, body: bytes, *, etag: str) -> bool:
            assert mend_shard(store, tar=theirs_tar.path, fresh=theirs).how == "replaced"
            return store.replace(key, body, etag=etag)

    overtaken: Any = Overtaken()
    mended = mend_shard(overtaken, tar=ours_tar.path, fresh=ours)
    assert (mended.how, mended.receipt) == ("sound", theirs)
    assert read_receipt(store, cache_key=SMALL.key, shard_id=receipt.shard_id) == theirs


def test_nothing_is_needed_where_nothing_is_wrong(store: ObjectStore, tmp_path: Path) -> None:
    shard = CommittedShard.from_receipts(commit(store, tmp_path, make_entries(3)))
    manifest = name(store, shard)
    assert not repair_needs(store, manifest, verify_manifest(store, manifest)).any
