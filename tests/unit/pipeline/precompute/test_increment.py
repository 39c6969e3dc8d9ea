"""Increments: what is there is taken over, whole and uncopied, and only the difference is planned."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cache.committed_shard import CommittedShard
from pipeline.cache.entry import Entry, encode_columns, encode_entry
from pipeline.cache.manifest import Manifest, write_manifest
from pipeline.cache.member_table import MemberTable
from pipeline.cache.receipt import Environment, Receipt, commit_receipt
from pipeline.cache.relation import relate, with_blocks
from pipeline.cache.shard import ShardWriter, upload_shard
from pipeline.cache.spec import CacheSpec, FeaturesConfig, PolicyConfig
from pipeline.datasets.masks import FileMask
from pipeline.datasets.sample import Sample
from pipeline.loading.loader import SampleReader
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore
from pipeline.precompute.conversion import convert_shard
from pipeline.precompute.increment import Increment, PlannedWork, plan_increment

SPEC = CacheSpec(
    ldm_digest="d" * 64, features=FeaturesConfig(blocks=(6, 8), stored_dtype="fp32"), policy=PolicyConfig()
)


def samples(numbers: Sequence[int]) -> list[Sample]:
    return [
        Sample(
            image_id=str(n // 3),
            label_id=str(n),
            image=f"{n // 3}.jpg",
            phrase=f"phrase {n}",
            mask=FileMask(key=f"{n}.png"),
            split="train",
        )
        for n in numbers
    ]


def table_of(numbers: Sequence[int]) -> MemberTable:
    return MemberTable.from_samples(samples(numbers), draws=1, digest=lambda key: f"digest of {key}")


def entry_of(key: str, blocks: Sequence[int]) -> Entry:
    """A member's entry, a function of its key and of the block alone, as frozen networks are."""

    def numbers(name: object, *shape: int) -> torch.Tensor:
        seed = int.from_bytes(f"{key} {name}".encode()[-8:]) ^ int(key[:15], 16)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed % 2**62))

    return Entry(
        key=key,
        latents=numbers("z", 4, 2, 2),
        context=numbers("c", 77, 4),
        features={block: numbers(block, 8, 2, 2) for block in blocks},
        mask=np.ones((16, 16), bool),
        facts={"phrase": key},
    )


def commit(store: ObjectStore, folder: Path, table: MemberTable, work: PlannedWork) -> Receipt:
    """What a worker does, without frozen networks."""
    features = work.spec.features
    if work.source is not None:
        return convert_shard(work.source, spec=work.spec, shard_id=work.shard.shard_id, store=store)
    encode = encode_columns if work.spec.content == "columns" else encode_entry
    with ShardWriter(folder / "shard.tar") as writer:
        for member in table.members(work.shard.rows):
            entry = entry_of(member.key, features.blocks)
            writer.write(entry.key, encode(entry, stored_dtype=features.stored_dtype))
    receipt = Receipt(
        shard_id=work.shard.shard_id,
        object_key=upload_shard(store, writer, cache_key=work.spec.key, shard_id=work.shard.shard_id),
        sha256=writer.sha256,
        size=writer.size,
        samples=tuple(writer.spans),
        left_out=(),
        environment=Environment(device="cpu", versions={}),
        draw=work.shard.draw,
    )
    return commit_receipt(store, cache_key=work.spec.key, receipt=receipt)


def finish(
    store: ObjectStore, folder: Path, table: MemberTable, spec: CacheSpec, increment: Increment
) -> Manifest:
    receipts = {work.name: commit(store, folder, table, work) for work in increment.work}
    shards = [CommittedShard.from_receipts(receipts[work.name]) for work in increment.fresh]
    for kept in increment.kept:
        shard = kept.source
        if kept.conversion:
            shard = CommittedShard.from_receipts(receipts[kept.conversion.name])
        if kept.column:
            shard = shard.with_column(CommittedShard.from_receipts(receipts[kept.column.name]))
        shards.append(shard)
    return write_manifest(store, spec=spec, dataset="made", split="train", shards=shards)


def ask(
    store: ObjectStore, folder: Path, numbers: Sequence[int], spec: CacheSpec = SPEC, per_shard: int = 6
) -> tuple[Increment, Manifest]:
    with table_of(numbers) as table:
        increment = plan_increment(table, spec=spec, samples_per_shard=per_shard, store=store)
        return increment, finish(store, folder, table, spec, increment)


def check(store: ObjectStore, manifest: Manifest, numbers: Sequence[int]) -> None:
    """Every sample once, with the very values that a direct computation gives in the stored type."""
    reader = SampleReader(store=store, manifest=manifest)
    features = manifest.spec.features
    with table_of(numbers) as table:
        wanted = sorted(member.key for member in table.members(range(len(table))))
    found = [reader.read_run(np.array([row]))[0] for row in range(len(reader.index))]
    assert sorted(entry.key for entry in found) == wanted
    for entry in found:
        direct = entry_of(entry.key, features.blocks)
        dtype = entry.latents.dtype
        assert tuple(entry.features) == features.blocks
        assert torch.equal(entry.latents, direct.latents.to(dtype))
        if not entry.scales:
            assert all(torch.equal(entry.features[b], direct.features[b].to(dtype)) for b in features.blocks)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(tmp_path / "store")


def test_more_samples_make_new_shards_and_leave_the_old_ones(store: ObjectStore, tmp_path: Path) -> None:
    _, before = ask(store, tmp_path, range(30))
    increment, after = ask(store, tmp_path, range(45))
    assert len(increment.kept) == len(before.shards)
    assert sum(len(work.shard.rows) for work in increment.fresh) == 15
    assert {shard.object_key for shard in before.shards} < {shard.object_key for shard in after.shards}
    check(store, after, range(45))


def test_an_equal_request_has_nothing_to_do(store: ObjectStore, tmp_path: Path) -> None:
    _, before = ask(store, tmp_path, range(20))
    increment, after = ask(store, tmp_path, range(20))
    assert not list(increment.work)
    assert {s.object_key for s in after.shards} == {s.object_key for s in before.shards}


def test_a_shard_with_a_sample_that_is_not_wanted_any_more_is_not_taken(
    store: ObjectStore, tmp_path: Path
) -> None:
    _, before = ask(store, tmp_path, range(30))
    increment, after = ask(store, tmp_path, range(1, 30))
    assert len(increment.kept) == len(before.shards) - 1
    check(store, after, range(1, 30))


def test_more_blocks_become_columns_of_the_same_samples(store: ObjectStore, tmp_path: Path) -> None:
    _, before = ask(store, tmp_path, range(20))
    more = with_blocks(SPEC, (6, 7, 8, 10))
    increment, after = ask(store, tmp_path, range(20), more)
    assert {work.spec.features.blocks for work in increment.work} == {(7, 10)}
    assert {work.spec.content for work in increment.work} == {"columns"}
    assert {s.object_key for s in after.shards} == {s.object_key for s in before.shards}
    assert after.size > before.size
    check(store, after, range(20))
    again, _ = ask(store, tmp_path, range(20), more)
    assert not list(again.work)
    third = with_blocks(SPEC, (6, 7, 8, 9, 10))
    increment, manifest = ask(store, tmp_path, range(20), third)
    assert {work.spec.features.blocks for work in increment.work} == {(9,)}
    assert {len(shard.columns) for shard in manifest.shards} == {2}
    check(store, manifest, range(20))


def test_fewer_blocks_need_nothing(store: ObjectStore, tmp_path: Path) -> None:
    ask(store, tmp_path, range(20))
    fewer = with_blocks(SPEC, (8,))
    increment, after = ask(store, tmp_path, range(20), fewer)
    assert not list(increment.work)
    check(store, after, range(20))


def test_more_samples_and_more_blocks_at_once(store: ObjectStore, tmp_path: Path) -> None:
    ask(store, tmp_path, range(20))
    more = with_blocks(SPEC, (6, 8, 9))
    increment, after = ask(store, tmp_path, range(32), more)
    computed = {(work.spec.content, work.spec.features.blocks) for work in increment.work}
    assert computed == {("columns", (9,)), ("samples", (6, 8, 9))}
    check(store, after, range(32))


@pytest.mark.parametrize("stored", ["fp16", "bf16", "int8", "fp8"])
def test_another_stored_type_is_converted_to_the_bytes_of_a_direct_computation(
    stored: str, store: ObjectStore, tmp_path: Path
) -> None:
    ask(store, tmp_path, range(20))
    other = SPEC.model_copy(
        update={"features": FeaturesConfig.model_validate({"blocks": (6, 8), "stored_dtype": stored})}
    )
    increment, after = ask(store, tmp_path, range(20), other)
    assert all(work.source is not None for work in increment.work)
    check(store, after, range(20))
    direct = open_store(tmp_path / "direct")
    _, computed = ask(direct, tmp_path, range(20), other)
    assert {s.sha256 for s in after.shards} == {s.sha256 for s in computed.shards}
    assert {s.shard_id for s in after.shards} == {s.shard_id for s in computed.shards}


def test_a_conversion_that_rounds_twice_names_its_source() -> None:
    def spec(**features: object) -> CacheSpec:
        return SPEC.model_copy(
            update={"features": FeaturesConfig.model_validate({"blocks": (6,), **features})}
        )

    int8, fp16 = spec(stored_dtype="int8"), spec(stored_dtype="fp16")
    twice = spec(stored_dtype="int8", stored_from="fp16")
    assert relate(int8, fp16) is None
    assert relate(twice, fp16) is not None
    assert relate(twice, spec(stored_dtype="fp32")) is None
    assert relate(int8, twice) is None
    assert int8.key != twice.key


def test_another_seed_shares_nothing() -> None:
    other = SPEC.model_copy(update={"features": SPEC.features.model_copy(update={"seed": 1})})
    assert relate(SPEC, other) is None


def test_an_interrupted_run_is_taken_up_though_the_data_set_has_grown(
    store: ObjectStore, tmp_path: Path
) -> None:
    with table_of(range(30)) as table:
        increment = plan_increment(table, spec=SPEC, samples_per_shard=6, store=store)
        committed = {commit(store, tmp_path, table, work).object_key for work in increment.fresh[1:]}
    _, after = ask(store, tmp_path, range(33))
    assert committed < {shard.object_key for shard in after.shards}
    check(store, after, range(33))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 20),
            st.integers(1, 20),
            st.sets(st.sampled_from([6, 7, 8, 9]), min_size=1, max_size=3),
        ),
        min_size=2,
        max_size=4,
    )
)
def test_any_history_leads_to_the_samples_asked_for(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[int, int, set[int]]]
) -> None:
    folder = tmp_path_factory.mktemp("history")
    store = open_store(folder / "store")
    for start, count, blocks in history:
        numbers = range(start, start + count)
        _, manifest = ask(store, folder, numbers, with_blocks(SPEC, tuple(sorted(blocks))))
        check(store, manifest, numbers)


def test_planning_a_set_reads_no_receipts_of_another_that_was_interrupted(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with table_of(range(30)) as table:
        first = list(plan_increment(table, spec=SPEC, samples_per_shard=6, store=store).work)
        for work in first:
            commit(store, tmp_path, table, work)
    asked: list[str] = []

    def read(*_: object, shard_ids: Sequence[str], **__: object) -> list[None]:
        asked.extend(shard_ids)
        return [None] * len(shard_ids)

    monkeypatch.setattr("pipeline.precompute.increment.read_receipts", read)
    with table_of(range(30, 40)) as table:
        names = [work.name for work in first]
        plan_increment(table, spec=SPEC, samples_per_shard=6, store=store, elsewhere=names)
        assert asked == []
        plan_increment(table, spec=SPEC, samples_per_shard=6, store=store)
        assert len(asked) == len(first)
