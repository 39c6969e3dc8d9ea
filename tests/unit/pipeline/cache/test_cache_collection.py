"""Collection: exactly what no manifest names goes, in an order that leaves nothing broken, and never a job's."""

from pathlib import Path
from typing import Any

import pytest
from unit.pipeline.cache.made_cache import make_entries, write_shard
from unit.pipeline.cache.made_family import COLUMN, LARGE, OTHER, SMALL, Family, commit, name, write_family

from ldznet.errors import UserError
from pipeline.cache import layout
from pipeline.cache.collection import Collected, collect, preview
from pipeline.cache.committed_shard import CommittedShard
from pipeline.cache.garbage import ORDER, Drop
from pipeline.cache.lease import lease
from pipeline.cache.manifest import answer_request
from pipeline.cache.sealed import seal
from pipeline.cache.shard import upload_shard
from pipeline.cache.verification import verify
from pipeline.object_store.store import ObjectStore

DAY = 86400.0


@pytest.fixture
def made(store: ObjectStore, tmp_path: Path) -> Family:
    return write_family(store, tmp_path)


def keys(store: ObjectStore) -> set[str]:
    return {info.key for info in store.list()}


def clean(store: ObjectStore, *, older_than_s: float = -60, drop: Drop | None = None) -> Collected:
    """With an age below nothing, for clocks that differ: everything is old enough."""
    shown = preview(store, older_than_s=older_than_s, drop=drop)
    return collect(store, shown, older_than_s=older_than_s, drop=drop)


def litter(store: ObjectStore, folder: Path) -> set[str]:
    """One of everything that no manifest names; their keys."""
    before = keys(store)
    commit(store, folder, make_entries(4))  # a run that was given up
    lone = write_shard(folder / "lone.tar", make_entries(5))
    upload_shard(store, lone, cache_key=SMALL.key, shard_id="0" * 32)  # killed before its receipt
    unfinished = "e" * 32
    store.put(layout.index_key(SMALL.key, unfinished), b"")
    store.put(layout.index_key(SMALL.key, unfinished, column=0), b"")
    store.put(layout.left_out_key(SMALL.key, unfinished), b"")
    store.put(layout.shard_list_key(SMALL.key, unfinished), b"")
    store.put(layout.spec_key("f" * 64), b"{}")
    return keys(store) - before


def test_nothing_goes_from_a_sound_cache(store: ObjectStore, made: Family) -> None:
    before = keys(store)
    assert clean(store).removed == ()
    assert keys(store) == before


def test_just_the_litter_goes(store: ObjectStore, made: Family, tmp_path: Path) -> None:
    before = keys(store)
    thrown = litter(store, tmp_path)
    assert len(thrown) == 8
    shown = preview(store, older_than_s=-60)
    assert {one.info.key for one in shown.garbage} == thrown
    assert keys(store) == before | thrown  # it only looked
    done = collect(store, shown, older_than_s=-60)
    assert keys(store) == before
    assert ({one.info.key for one in done.removed}, done.kept, done.unfinished) == (thrown, 0, 0)
    assert done.size == shown.size > 0


def test_what_is_young_stays(store: ObjectStore, made: Family, tmp_path: Path) -> None:
    litter(store, tmp_path)
    before = keys(store)
    shown = preview(store, older_than_s=DAY)
    assert shown.garbage == []
    assert len(shown.young) == 8
    assert clean(store, older_than_s=DAY).removed == ()
    assert keys(store) == before


def test_only_what_was_shown_goes(store: ObjectStore, made: Family, tmp_path: Path) -> None:
    shown = preview(store, older_than_s=-60)
    thrown = litter(store, tmp_path)
    assert collect(store, shown, older_than_s=-60).removed == ()
    shown = preview(store, older_than_s=-60)
    receipt = commit(store, tmp_path, make_entries(4))  # adopts the one given up
    name(store, CommittedShard.from_receipts(receipt))
    done = collect(store, shown, older_than_s=-60)
    assert done.kept == 2  # its tar and its receipt, in use by now
    assert keys(store) & thrown == {receipt.object_key, layout.receipt_key(SMALL.key, receipt.shard_id)}


def test_a_request_that_leads_nowhere_goes(store: ObjectStore, made: Family) -> None:
    gone = made.small.model_copy(update={"manifest_id": "9" * 32})
    answer_request(store, "dd", gone)
    assert [one.info.key for one in clean(store).removed] == [layout.request_key("dd")]


def test_a_running_jobs_family_stays(store: ObjectStore, made: Family, tmp_path: Path) -> None:
    thrown = litter(store, tmp_path)
    unrelated = commit(store, tmp_path, make_entries(6), spec=OTHER)
    with lease(store, [LARGE]):
        shown = preview(store, older_than_s=-60)
        assert set(shown.leased) == {SMALL.key, LARGE.key, COLUMN.key, "f" * 64}
        done = clean(store)
        assert {one.info.key for one in done.removed} == {
            unrelated.object_key,
            layout.receipt_key(OTHER.key, unrelated.shard_id),
        }
        assert done.unfinished is None
        assert thrown <= keys(store)
        with pytest.raises(UserError, match=r"a job is at work on .*: wait until it ends"):
            preview(store, older_than_s=-60, drop=Drop(cache_key=SMALL.key))
    clean(store)
    assert not thrown & keys(store)


def test_shards_without_a_specification_stay_while_any_job_runs(
    store: ObjectStore, made: Family, tmp_path: Path
) -> None:
    store.delete(
        layout.spec_key(OTHER.key)
    )  # as a job that has just begun: whose shards these are is not told
    commit(store, tmp_path, make_entries(6), spec=OTHER)
    with lease(store, [LARGE]):
        assert clean(store).removed == ()
    assert len(clean(store).removed) == 2


def test_a_dropped_specification_takes_what_only_it_named(store: ObjectStore, made: Family) -> None:
    drop = Drop(cache_key=SMALL.key)
    shown = preview(store, older_than_s=DAY, drop=drop)
    assert shown.lent == {receipt.object_key: [LARGE.key] for receipt in made.receipts[:2]}
    third = made.receipts[2]
    removed = {one.info.key for one in clean(store, older_than_s=DAY, drop=drop).removed}
    assert removed == {
        layout.request_key("aa"),
        layout.manifest_key(SMALL.key, made.small.manifest_id),
        *(key for key in made.small.object_keys if "/manifests/" in key),
        layout.receipt_key(SMALL.key, third.shard_id),
        third.object_key,
    }
    assert verify(store).faults == ()
    assert layout.spec_key(SMALL.key) in keys(store)


def test_dropping_all_leaves_nothing(store: ObjectStore, made: Family) -> None:
    for spec in (LARGE, SMALL, OTHER):
        clean(store, older_than_s=DAY, drop=Drop(cache_key=spec.key))
    assert clean(store).removed != ()  # the column's specification, for its age
    assert keys(store) == set()
    with pytest.raises(UserError, match="there is nothing at"):
        preview(store, older_than_s=DAY)


def test_one_manifest_may_be_dropped(store: ObjectStore, made: Family) -> None:
    half = name(store, CommittedShard.from_receipts(made.receipts[0]), split="half")
    removed = clean(store, drop=Drop(cache_key=SMALL.key, manifest_id=half.manifest_id)).removed
    assert {one.kind for one in removed} == {"manifest", "part of a manifest"}
    assert all(half.manifest_id in one.info.key for one in removed)
    assert verify(store).faults == ()


def test_a_manifest_that_cannot_be_read_stops_it(store: ObjectStore, made: Family, tmp_path: Path) -> None:
    litter(store, tmp_path)
    key = layout.manifest_key(LARGE.key, made.large.manifest_id)
    body = bytearray(store.get(key))
    body[200] ^= 1
    store.put(key, bytes(body))
    before = keys(store)
    with pytest.raises(UserError, match=r"nothing was collected, .*--drop \w{12}/\w{32}"):
        preview(store, older_than_s=-60)
    assert keys(store) == before
    clean(store, drop=Drop(cache_key=LARGE.key, manifest_id=made.large.manifest_id))
    assert {layout.cache_key_of(key) for key in keys(store)} == {SMALL.key, OTHER.key, "specs", "requests"}
    assert verify(store).faults == ()


def test_a_repaired_shard_stays_until_its_manifest_is_written(
    store: ObjectStore, made: Family, tmp_path: Path
) -> None:
    first = made.receipts[0]
    tar = write_shard(tmp_path / "other.tar", make_entries(2))
    repaired = upload_shard(store, tar, cache_key=SMALL.key, shard_id=first.shard_id)
    loser = upload_shard(
        store,
        write_shard(tmp_path / "loser.tar", make_entries(1)),
        cache_key=SMALL.key,
        shard_id=first.shard_id,
    )
    key = layout.receipt_key(SMALL.key, first.shard_id)
    store.put(key, seal(first.model_copy(update={"object_key": repaired, "sha256": tar.sha256})))
    assert {one.info.key for one in clean(store).removed} == {loser}
    store.put(key, b"damaged")
    assert clean(store).removed == ()


def test_a_tar_stays_with_a_receipt_that_is_too_young(store: ObjectStore, tmp_path: Path) -> None:
    receipt = commit(store, tmp_path, make_entries(2))

    class OldTars:
        def __getattr__(self, attribute: str) -> Any:
            return getattr(store, attribute)

        def list(self, prefix: str = "") -> Any:
            from dataclasses import replace

            for info in store.list(prefix):
                old = 2 * DAY if info.key.endswith(".tar") else 0
                yield replace(info, modified=info.modified - old)

    aged: Any = OldTars()
    assert clean(aged, older_than_s=DAY).removed == ()
    assert receipt.object_key in keys(store)


def test_what_is_no_caches_is_never_touched(store: ObjectStore, made: Family) -> None:
    foreign = {
        f"{SMALL.key}/shards/notes.txt",
        f"{SMALL.key}/manifests/backup.json.old",
        "checkpoints/step-3/model.safetensors",
        "specs/readme.md",
    }
    for key in foreign:
        store.put(key, b"mine")
    for spec in (LARGE, SMALL, OTHER):
        clean(store, drop=Drop(cache_key=spec.key))
    assert keys(store) == foreign
    beside = {key for key in foreign if not key.startswith(SMALL.key)}
    for key in foreign - beside:
        store.delete(key)
    with pytest.raises(UserError, match="holds no feature cache, but"):
        clean(store)
    assert keys(store) == beside


def test_killed_anywhere_it_leaves_nothing_broken(store: ObjectStore, made: Family, tmp_path: Path) -> None:
    """Deletions in the order in which they happen: after each of them the cache is sound."""
    if store.url.startswith("s3:"):
        pytest.skip("the order is the same on every store")
    litter(store, tmp_path)
    order: list[str] = []

    class Watched:
        def __getattr__(self, attribute: str) -> Any:
            return getattr(store, attribute)

        def delete(self, key: str) -> None:
            store.delete(key)
            if not key.startswith("leases/"):
                order.append(key)
                faults = [one for one in verify(store).faults if "specs/" not in one.object_key]
                assert faults == [], f"after {key}"

    watched: Any = Watched()
    drop = Drop(cache_key=SMALL.key)
    shown = preview(store, older_than_s=-60, drop=drop)
    collect(watched, shown, older_than_s=-60, drop=drop, at_once=1)
    kinds = {one.info.key: ORDER.index(one.kind) for one in shown.garbage}
    assert [kinds[key] for key in order] == sorted(kinds.values())


def test_a_dead_jobs_lease_goes(store: ObjectStore, made: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.cache import lease as leases

    monkeypatch.setattr(leases, "DEAD_AFTER_S", -60.0)
    with lease(store, [SMALL]):
        assert [one.kind for one in clean(store).removed] == ["lease"]
