"""More draws of the same samples: only the new ones are computed; fewer need nothing."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from unit.pipeline.cache.made_family import commit as commit_entries
from unit.pipeline.cache.made_family import name
from unit.pipeline.precompute.test_increment import SPEC, commit, entry_of, finish, samples

from pipeline.cache.committed_shard import CommittedShard
from pipeline.cache.index import member_key
from pipeline.cache.manifest import Manifest, read_index
from pipeline.cache.member_table import MemberTable
from pipeline.cache.receipt import read_receipt
from pipeline.cache.relation import with_blocks
from pipeline.cache.spec import CacheSpec, FeaturesConfig, PolicyConfig
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore
from pipeline.precompute.increment import Increment, plan_increment


def spec_of(draws: int, spec: CacheSpec = SPEC) -> CacheSpec:
    return spec.model_copy(update={"policy": PolicyConfig(draws=draws)})


def table_of(numbers: Sequence[int], draws: int) -> MemberTable:
    return MemberTable.from_samples(samples(numbers), draws=draws, digest=lambda key: f"digest of {key}")


def ask(
    store: ObjectStore, folder: Path, numbers: Sequence[int], draws: int, spec: CacheSpec = SPEC
) -> tuple[Increment, Manifest]:
    wanted = spec_of(draws, spec)
    with table_of(numbers, draws) as table:
        increment = plan_increment(table, spec=wanted, samples_per_shard=6, store=store)
        return increment, finish(store, folder, table, wanted, increment)


def check(store: ObjectStore, manifest: Manifest, numbers: Sequence[int], draws: int) -> None:
    """Every member once, in a shard of its draw."""
    index = read_index(store, manifest)
    with table_of(numbers, draws) as table:
        wanted = {member.key: member.draw for member in table.members(range(len(table)))}
    found = {
        member_key(index, row): manifest.shards[int(index["shard"][row])].draw for row in range(len(index))
    }
    assert found == wanted
    assert len(index) == len(wanted)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(tmp_path / "store")


def test_more_draws_compute_the_new_ones_alone(store: ObjectStore, tmp_path: Path) -> None:
    _, before = ask(store, tmp_path, range(20), 1)
    increment, after = ask(store, tmp_path, range(20), 3)
    assert {work.shard.draw for work in increment.work} == {1, 2}
    assert sum(len(work.shard.rows) for work in increment.work) == 40
    assert {shard.object_key for shard in before.shards} < {shard.object_key for shard in after.shards}
    check(store, after, range(20), 3)
    again, _ = ask(store, tmp_path, range(20), 3)
    assert not list(again.work)


def test_fewer_draws_need_nothing(store: ObjectStore, tmp_path: Path) -> None:
    ask(store, tmp_path, range(20), 4)
    increment, after = ask(store, tmp_path, range(20), 2)
    assert not list(increment.work)
    check(store, after, range(20), 2)


def test_more_samples_draws_and_blocks_at_once(store: ObjectStore, tmp_path: Path) -> None:
    ask(store, tmp_path, range(20), 2)
    increment, after = ask(store, tmp_path, range(26), 3, with_blocks(SPEC, (6, 8, 9)))
    computed = {(work.spec.content, work.shard.draw): 0 for work in increment.work}
    for work in increment.work:
        computed[work.spec.content, work.shard.draw] += len(work.shard.rows)
    assert computed == {
        ("columns", 0): 20,
        ("columns", 1): 20,
        ("samples", 0): 6,
        ("samples", 1): 6,
        ("samples", 2): 26,
    }
    check(store, after, range(26), 3)
    assert {column.draw == shard.draw for shard in after.shards for column in shard.columns} == {True}


def test_a_conversion_keeps_the_draw(store: ObjectStore, tmp_path: Path) -> None:
    ask(store, tmp_path, range(9), 2)
    int8 = SPEC.model_copy(update={"features": FeaturesConfig(blocks=(6, 8), stored_dtype="int8")})
    increment, after = ask(store, tmp_path, range(9), 2, int8)
    assert all(work.source is not None for work in increment.work)
    check(store, after, range(9), 2)


def test_an_interrupted_run_is_taken_up_with_its_draws(store: ObjectStore, tmp_path: Path) -> None:
    with table_of(range(20), 3) as table:
        increment = plan_increment(table, spec=spec_of(3), samples_per_shard=6, store=store)
        for work in increment.fresh[::2]:
            commit(store, tmp_path, table, work)
    increment, after = ask(store, tmp_path, range(23), 3)
    assert {kept.source.reference.draw for kept in increment.kept} == {0, 1, 2}
    check(store, after, range(23), 3)


def test_a_shard_of_mixed_draws_is_not_taken_over(store: ObjectStore, tmp_path: Path) -> None:
    """As shards were before: an epoch of one draw cannot be read from them."""
    spec = spec_of(2)
    with table_of(range(6), 2) as table:
        keys = [member.key for member in table.members(range(len(table)))]
        receipt = commit_entries(store, tmp_path, [entry_of(key, (6, 8)) for key in keys], spec=spec)
        store.create(f"specs/{spec.key}.json", spec.canonical().encode())
        name(store, CommittedShard.from_receipts(receipt), spec=spec)
        increment = plan_increment(table, spec=spec, samples_per_shard=6, store=store)
    assert not increment.kept
    assert [(work.shard.draw, len(work.shard.rows)) for work in increment.fresh] == [(0, 6), (1, 6)]
    assert read_receipt(store, cache_key=spec.key, shard_id=receipt.shard_id) is not None
