"""The manifest: written last, the same for the same shards, and never leading out of its cache."""

import json
from pathlib import Path

import pytest
from made_cache import SPEC, commit, make_entries, write_cache

from ldznet.errors import UserError
from pipeline.cache import layout
from pipeline.cache.index import member_key
from pipeline.cache.manifest import (
    Manifest,
    answer_request,
    find_manifest,
    read_index,
    read_manifest,
    write_manifest,
)
from pipeline.cache.receipt import LeftOut
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(tmp_path / "store")


def read(store: ObjectStore, manifest: Manifest) -> Manifest:
    return read_manifest(store, cache_key=manifest.cache_key, manifest_id=manifest.manifest_id)


def rewrite(store: ObjectStore, manifest: Manifest, **changes: object) -> None:
    content = manifest.model_dump(mode="json") | changes
    store.put(layout.manifest_key(manifest.cache_key, manifest.manifest_id), json.dumps(content).encode())


def test_equal_receipts_give_equal_objects(store: ObjectStore, tmp_path: Path) -> None:
    manifest = write_cache(store, tmp_path, samples=9, per_shard=3)
    before = {info.key: info.etag for info in store.list()}
    assert write_cache(store, tmp_path, samples=9, per_shard=3) == manifest
    assert {info.key: info.etag for info in store.list()} == before
    assert read(store, manifest) == manifest
    assert (manifest.samples, manifest.failed, manifest.filtered) == (9, 0, 0)
    assert manifest.size == sum(shard.size for shard in manifest.shards)


def test_the_index_names_every_sample(store: ObjectStore, tmp_path: Path) -> None:
    manifest = write_cache(store, tmp_path, samples=40, per_shard=9)
    index = read_index(store, manifest)
    keys = [member_key(index, row) for row in range(len(index))]
    assert sorted(keys) == sorted(entry.key for entry in make_entries(40))
    assert index["shard"].tolist() == sorted(index["shard"].tolist())


def test_a_key_that_ends_in_zeros_keeps_them(store: ObjectStore, tmp_path: Path) -> None:
    import dataclasses

    entry = dataclasses.replace(make_entries(1)[0], key="ab" * 14 + "0000")
    manifest = write_manifest(
        store, spec=SPEC, dataset="made", split="train", receipts=[commit(store, tmp_path, [entry])]
    )
    assert member_key(read_index(store, manifest), 0) == entry.key


def test_left_out_is_counted_by_kind(store: ObjectStore, tmp_path: Path) -> None:
    left_out = tuple(
        LeftOut.model_validate({"key": f"{n}", "image": "i", "phrase": "p", "why": why, "reason": "r"})
        for n, why in enumerate(["failed", "filtered", "failed"])
    )
    receipt = commit(store, tmp_path, make_entries(2), left_out)
    manifest = write_manifest(store, spec=SPEC, dataset="made", split="train", receipts=[receipt])
    assert (manifest.samples, manifest.failed, manifest.filtered) == (2, 2, 1)


@pytest.mark.parametrize(
    "outside",
    [
        "/etc/passwd",
        "../other/shard.tar",
        f"{SPEC.key}/../other/shard.tar",
        f"{SPEC.key}/shards/../../x",
        "pipe:cat /etc/passwd",
        "other-cache/shards/x.tar",
        "",
    ],
)
def test_names_outside_the_cache_are_refused(outside: str, store: ObjectStore, tmp_path: Path) -> None:
    manifest = write_cache(store, tmp_path, samples=4, per_shard=2)
    shards = manifest.model_dump(mode="json")["shards"]
    rewrite(store, manifest, shards=[shards[0], shards[1] | {"object_key": outside}])
    with pytest.raises(UserError, match="lies outside its own cache"):
        read(store, manifest)
    rewrite(store, manifest, index_key=outside)
    with pytest.raises(UserError, match="lies outside its own cache"):
        read(store, manifest)


def test_what_is_no_manifest_is_refused(store: ObjectStore, tmp_path: Path) -> None:
    manifest = write_cache(store, tmp_path, samples=4, per_shard=2)
    rewrite(store, manifest, surprise=1)
    with pytest.raises(UserError, match="not a manifest that this version reads"):
        read(store, manifest)
    store.put(layout.manifest_key(manifest.cache_key, manifest.manifest_id), b"{")
    with pytest.raises(UserError, match="not a manifest that this version reads"):
        read(store, manifest)
    store.delete(layout.manifest_key(manifest.cache_key, manifest.manifest_id))
    with pytest.raises(UserError, match="run `ldznet precompute` with this recipe first"):
        read(store, manifest)


def test_a_request_leads_to_its_manifest(store: ObjectStore, tmp_path: Path) -> None:
    manifest = write_cache(store, tmp_path, samples=4, per_shard=2)
    assert find_manifest(store, "asked") is None
    answer_request(store, "asked", manifest, run_id="r")
    assert find_manifest(store, "asked") == manifest
    store.delete(layout.manifest_key(manifest.cache_key, manifest.manifest_id))
    assert find_manifest(store, "asked") is None  # so that precompute writes it again
    store.put(layout.request_key("asked"), b"not json")
    with pytest.raises(UserError, match=r"requests/asked\.json is damaged"):
        find_manifest(store, "asked")


def test_an_answer_to_a_request_cannot_lead_out_of_the_cache(store: ObjectStore, tmp_path: Path) -> None:
    manifest = write_cache(store, tmp_path, samples=4, per_shard=2)
    answer_request(store, "asked", manifest)
    for field in ("cache_key", "manifest_id"):
        answer = {"cache_key": manifest.cache_key, "manifest_id": manifest.manifest_id} | {field: "../x"}
        store.put(layout.request_key("asked"), json.dumps(answer).encode())
        with pytest.raises(UserError, match=r"asked\.json is damaged|leaves its store"):
            find_manifest(store, "asked")
