"""The manifest: written last, the same for the same shards, and never leading out of its cache."""

import hashlib
import json
from pathlib import Path

import pytest
from unit.pipeline.cache.made_cache import SPEC, commit, make_entries, manifest_of, write_cache
from unit.pipeline.cache.made_family import COLUMN, CPU, LARGE
from unit.pipeline.cache.made_family import commit as family_commit

from ldznet.errors import UserError
from pipeline.cache import layout
from pipeline.cache.collection import preview
from pipeline.cache.committed_shard import CommittedShard
from pipeline.cache.index import member_key
from pipeline.cache.inventory import describe
from pipeline.cache.manifest import (
    Manifest,
    RequestAnswer,
    answer_request,
    committed_shards,
    find_manifest,
    list_manifests,
    read_index,
    read_left_out,
    read_manifest,
    write_manifest,
)
from pipeline.cache.receipt import LeftOut, Receipt
from pipeline.cache.sealed import DamagedDocumentError, seal, unseal
from pipeline.cache.verification import verify
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(tmp_path / "store")


def read(store: ObjectStore, manifest: Manifest) -> Manifest:
    return read_manifest(store, cache_key=manifest.cache_key, manifest_id=manifest.manifest_id)


def rewrite(store: ObjectStore, manifest: Manifest, **changes: object) -> None:
    body = json.dumps(manifest.model_dump(mode="json") | changes).encode()
    sealed = b'{"sha256":"%s","document":%s}\n' % (hashlib.sha256(body).hexdigest().encode(), body)
    store.put(layout.manifest_key(manifest.cache_key, manifest.manifest_id), sealed)


def test_equal_receipts_give_equal_objects(store: ObjectStore, tmp_path: Path) -> None:
    manifest = write_cache(store, tmp_path, samples=9, per_shard=3)
    before = {info.key: info.etag for info in store.list()}
    assert write_cache(store, tmp_path, samples=9, per_shard=3) == manifest
    assert {info.key: info.etag for info in store.list()} == before
    assert read(store, manifest) == manifest
    assert (manifest.samples, manifest.failed, manifest.filtered) == (9, 0, 0)
    assert manifest.size == sum(shard.size for shard in manifest.shards)


def test_names_and_bytes_of_a_cache_hold(store: ObjectStore, tmp_path: Path) -> None:
    # Written down with schema 4: a cache that is there is read, not computed anew, until the schema is raised.
    manifest = write_cache(store, tmp_path, samples=5, per_shard=3)
    assert manifest.manifest_id == "355451f475186b97c571cd4f4ab04894"
    digests = {
        info.key.rpartition("/")[2]: hashlib.sha256(store.get(info.key)).hexdigest()[:16]
        for info in store.list(SPEC.key)
        if not info.key.endswith(".shards.txt")  # which names the store
    }
    assert digests == {
        "355451f475186b97c571cd4f4ab04894.index": "5873b096b87f3a18",
        "355451f475186b97c571cd4f4ab04894.json": "ac56c166b89060d1",
        "355451f475186b97c571cd4f4ab04894.left_out.jsonl": "e3b0c44298fc1c14",
        "316762e8ca0a0f2d0e7f361a7a58c227.json": "3b7cdb25f8a5f361",
        "3bb1ba1f42dd43650fda35e514324d46.json": "10c498843859f937",
        "316762e8ca0a0f2d0e7f361a7a58c227-c600700cd1d87d3b.tar": "c600700cd1d87d3b",
        "3bb1ba1f42dd43650fda35e514324d46-c19dac6f3f17f6b4.tar": "c19dac6f3f17f6b4",
    }
    assert {shard.draw for shard in read(store, manifest).shards} == {0}


def test_a_shards_draw_comes_back(store: ObjectStore, tmp_path: Path) -> None:
    receipt = commit(store, tmp_path, make_entries(4))
    later = receipt.model_copy(update={"draw": 3})
    manifest = manifest_of(store, later)
    assert read(store, manifest).shards[0].draw == 3
    assert manifest.manifest_id != manifest_of(store, receipt).manifest_id
    assert unseal(Receipt, seal(later)).draw == 3
    assert b"draw" not in seal(receipt)


def test_the_index_names_every_sample(store: ObjectStore, tmp_path: Path) -> None:
    manifest = write_cache(store, tmp_path, samples=40, per_shard=9)
    index = read_index(store, manifest)
    keys = [member_key(index, row) for row in range(len(index))]
    assert sorted(keys) == sorted(entry.key for entry in make_entries(40))
    assert index["shard"].tolist() == sorted(index["shard"].tolist())


def test_a_key_that_ends_in_zeros_keeps_them(store: ObjectStore, tmp_path: Path) -> None:
    import dataclasses

    entry = dataclasses.replace(make_entries(1)[0], key="ab" * 14 + "0000")
    manifest = manifest_of(store, commit(store, tmp_path, [entry]))
    assert member_key(read_index(store, manifest), 0) == entry.key


def test_left_out_is_counted_by_kind(store: ObjectStore, tmp_path: Path) -> None:
    left_out = tuple(
        LeftOut.model_validate({"key": f"{n}", "image": "i", "phrase": "p", "why": why, "reason": "r"})
        for n, why in enumerate(["failed", "filtered", "failed"])
    )
    receipt = commit(store, tmp_path, make_entries(2), left_out)
    manifest = manifest_of(store, receipt)
    assert (manifest.samples, manifest.failed, manifest.filtered) == (2, 2, 1)
    assert list(read_left_out(store, manifest)) == [(0, member) for member in left_out]


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
    with pytest.raises(UserError, match="which is no part of a cache"):
        read(store, manifest)
    rewrite(store, manifest, index={"key": outside, "sha256": "0" * 64})
    with pytest.raises(UserError, match="which is no part of a cache"):
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


@pytest.mark.parametrize("field", ["cache_key", "manifest_id"])
def test_an_answer_to_a_request_cannot_lead_out_of_the_cache(
    field: str, store: ObjectStore, tmp_path: Path
) -> None:
    manifest = write_cache(store, tmp_path, samples=4, per_shard=2)
    answer = RequestAnswer(cache_key=manifest.cache_key, manifest_id=manifest.manifest_id)
    store.put(layout.request_key("asked"), seal(answer.model_copy(update={field: "../x"})))
    with pytest.raises(UserError, match=r"leaves its store"):
        find_manifest(store, "asked")


@pytest.mark.parametrize("place", range(0, 1000, 37))
def test_one_flipped_bit_anywhere_is_told(place: int, store: ObjectStore, tmp_path: Path) -> None:
    manifest = write_cache(store, tmp_path, samples=4, per_shard=2)
    key = layout.manifest_key(manifest.cache_key, manifest.manifest_id)
    body = bytearray(store.get(key))
    body[place % len(body)] ^= 1 << place % 7
    store.put(key, bytes(body))
    with pytest.raises(UserError, match="not a manifest that this version reads"):
        read(store, manifest)


def test_a_column_computed_elsewhere_is_told(store: ObjectStore, tmp_path: Path) -> None:
    entries, gpu = make_entries(3), CPU.model_copy(update={"device": "cuda"})
    samples = family_commit(store, tmp_path, entries)
    columns = family_commit(store, tmp_path, entries, spec=COLUMN, environment=gpu)
    shard = CommittedShard.from_receipts(samples, [columns])
    manifest = write_manifest(store, spec=LARGE, dataset="made", split="train", shards=[shard])
    (reference,) = manifest.shards
    assert manifest.environments[reference.environment] == CPU
    assert manifest.environments[reference.columns[0].environment] == gpu
    (again,) = committed_shards(store, manifest)
    assert again.environments == (CPU, gpu)


def test_a_damaged_part_of_an_interrupted_run_is_written_again(store: ObjectStore, tmp_path: Path) -> None:
    receipts = [commit(store, tmp_path, make_entries(2))]
    manifest = manifest_of(store, *receipts)
    store.delete(layout.manifest_key(manifest.cache_key, manifest.manifest_id))
    store.put(manifest.index.key, b"x" * 80)
    assert manifest_of(store, *receipts) == manifest
    assert len(read_index(store, manifest)) == 2


@pytest.mark.parametrize("refused", ["/manifests/", ""])
def test_a_store_that_refuses_is_not_told_as_damage(
    refused: str, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_cache(store, tmp_path, samples=4, per_shard=2)
    answer_request(store, "asked", manifest)
    read_any = type(store).get

    def refuse(one: ObjectStore, key: str, **how: int | None) -> bytes:
        if refused in key:
            raise UserError("the store refuses: wrong credentials")
        return read_any(one, key, **how)

    monkeypatch.setattr(type(store), "get", refuse)
    reads = (
        lambda: find_manifest(store, "asked"),
        lambda: read(store, manifest),
        lambda: list(list_manifests(store, manifest.cache_key)),
        lambda: describe(store, manifest.cache_key),
        lambda: verify(store),
        lambda: preview(store, older_than_s=1),
    )
    for one in reads:
        with pytest.raises(UserError, match="wrong credentials") as told:
            one()
        assert not isinstance(told.value, DamagedDocumentError)
