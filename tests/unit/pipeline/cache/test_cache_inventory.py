"""What a cache holds: summaries count a shared shard once, details tell where shards come from, comparisons differ."""

from pathlib import Path

import pytest
from unit.pipeline.cache.made_family import COLUMN, LARGE, OTHER, SMALL, Family, commit, write_family

from ldznet.errors import UserError
from pipeline.cache import layout
from pipeline.cache.cache_keys import find_cache_key, list_cache_keys, shorten
from pipeline.cache.comparison import FieldDifference, compare, differing_fields
from pipeline.cache.inventory import describe, summarise
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(tmp_path / "store")


@pytest.fixture
def made(store: ObjectStore, tmp_path: Path) -> Family:
    return write_family(store, tmp_path)


def test_a_summary_counts_shared_shards_once(store: ObjectStore, made: Family) -> None:
    summary = summarise(store)
    of = {one.cache_key: one for one in summary.specs}
    assert set(of) == {SMALL.key, LARGE.key, COLUMN.key, OTHER.key}
    assert (of[SMALL.key].samples, of[SMALL.key].shards, of[SMALL.key].size) == (9, 3, made.small.size)
    assert (of[LARGE.key].samples, of[LARGE.key].shards, of[LARGE.key].size) == (9, 3, made.large.size)
    assert of[SMALL.key].sets == ("made/train",)
    assert (of[COLUMN.key].shards, of[COLUMN.key].lent, of[COLUMN.key].unnamed) == (0, 2, 0)
    tars = sum(info.size for info in store.list() if info.key.endswith(".tar"))
    assert summary.size == tars < sum(one.size for one in summary.specs)


def test_what_no_manifest_names_is_counted(store: ObjectStore, made: Family, tmp_path: Path) -> None:
    from unit.pipeline.cache.made_cache import make_entries

    commit(store, tmp_path, make_entries(2), spec=LARGE)
    unnamed = {one.cache_key: one.unnamed for one in summarise(store).specs}
    assert unnamed == {SMALL.key: 0, LARGE.key: 1, COLUMN.key: 0, OTHER.key: 0}


def test_details_tell_origins_and_reasons(store: ObjectStore, made: Family) -> None:
    (manifest,) = describe(store, LARGE.key).manifests
    origins = {(one.where, one.cache_key): (one.shards, one.size) for one in manifest.origins}
    assert origins == {
        ("own", LARGE.key): (1, made.fresh.size),
        ("other specification", SMALL.key): (2, sum(receipt.size for receipt in made.receipts[:2])),
        ("column", COLUMN.key): (2, sum(receipt.size for receipt in made.columns)),
    }
    assert [(one.why, one.reason, one.members) for one in manifest.left_out] == [
        ("filtered", "outside the view", 2),
        ("failed", "no image", 1),
    ]
    assert (manifest.failed, manifest.filtered, manifest.samples) == (1, 2, 9)
    assert (manifest.requests, manifest.run_ids) == (1, ("run",))


def test_a_comparison_names_fields_and_shared_shards(store: ObjectStore, made: Family) -> None:
    found = compare(store, SMALL.key, LARGE.key)
    assert found.fields == (FieldDifference(field="features.blocks", first=[6, 8], second=[6, 8, 9]),)
    assert (found.shared_shards, found.shared_size) == (2, sum(one.size for one in made.receipts[:2]))
    assert found.first_size == made.receipts[2].size
    assert found.second_size == made.fresh.size + sum(one.size for one in made.columns)
    fields = {one.field for one in differing_fields(SMALL, OTHER)}
    assert fields == {"features.blocks", "features.stored_dtype", "policy.view.size"}


def test_a_key_is_found_by_what_tells_it_apart(store: ObjectStore, made: Family) -> None:
    keys = list_cache_keys(store)
    for key, short in shorten(keys).items():
        assert find_cache_key(store, short) == key
        assert find_cache_key(store, short.upper()) == key
        assert len(short) == 12
    with pytest.raises(UserError, match="Give the first digits of its key") as missing:
        find_cache_key(store, "")
    assert all(key[:12] in str(missing.value) for key in keys)
    alike = SMALL.key[:20] + "0" * 44
    store.put(layout.spec_key(alike), b"{}")
    with pytest.raises(UserError, match=f"{SMALL.key[:21]}.*give more digits"):
        find_cache_key(store, SMALL.key[:20])
    store.delete(layout.spec_key(alike))
    with pytest.raises(UserError, match=f"starts with 'zz': there are .*{SMALL.key[:12]}"):
        find_cache_key(store, "zz")
    store.delete(layout.spec_key(SMALL.key))
    assert find_cache_key(store, SMALL.key) == SMALL.key


def test_keys_that_begin_alike_are_shown_longer() -> None:
    first, second, third = "a" * 20 + "0" * 44, "a" * 20 + "1" * 44, "b" * 64
    assert shorten([third, second, first]) == {
        first: "a" * 20 + "0",
        second: "a" * 20 + "1",
        third: "b" * 12,
    }


def test_a_place_without_a_cache_is_named(store: ObjectStore) -> None:
    with pytest.raises(UserError, match="there is nothing at file:"):
        summarise(store)
    store.put("photos/1.png", b"x")
    with pytest.raises(UserError, match=r"holds no feature cache, but 'photos/1\.png'"):
        summarise(store)


def test_a_specification_that_cannot_be_read_is_told(store: ObjectStore, made: Family) -> None:
    store.put(layout.spec_key(SMALL.key), LARGE.canonical().encode())
    assert [one.spec is None for one in summarise(store).specs if one.cache_key == SMALL.key] == [True]
    assert describe(store, SMALL.key).spec is None
    assert compare(store, SMALL.key, LARGE.key).fields is None


def test_a_damaged_manifest_hides_nothing_else(
    store: ObjectStore, made: Family, caplog: pytest.LogCaptureFixture
) -> None:
    place = layout.manifest_key(OTHER.key, made.other.manifest_id)
    store.put(place, store.get(place)[:-40])
    found = {one.cache_key: one for one in summarise(store).specs}
    assert (found[OTHER.key].manifests, found[SMALL.key].manifests) == (0, 1)
    assert place in caplog.text
    assert "--repair" in caplog.text
