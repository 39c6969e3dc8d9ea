"""Members and the plan: ids from content, whole images together, each member in one shard."""

import random
from collections import defaultdict
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from unit.pipeline.cache.made_cache import SPEC

from pipeline.cache.member import member_key, sample_id
from pipeline.cache.member_table import MemberTable, key_numbers, key_text
from pipeline.cache.plan import ShardPlan, plan_shards
from pipeline.datasets.masks import FileMask
from pipeline.datasets.sample import Sample


def _sample(image: str, phrase: str, mask: str = "m.png") -> Sample:
    return Sample(
        image_id=image, label_id=phrase, image=image, phrase=phrase, mask=FileMask(key=mask), split="train"
    )


def _samples(images: int, phrases: int) -> list[Sample]:
    return [_sample(f"{i}.jpg", f"phrase {p}") for i in range(images) for p in range(phrases)]


def _table(samples: list[Sample], draws: int = 1) -> MemberTable:
    return MemberTable.from_samples(samples, draws=draws, digest=lambda key: f"digest of {key}")


def _plans(samples: list[Sample], *, draws: int = 1, spec_key: str = "k", size: int = 99) -> list[ShardPlan]:
    with _table(samples, draws) as table:
        return [shard.plan(table) for shard in plan_shards(table, spec_key=spec_key, samples_per_shard=size)]


def test_sample_id_is_its_content_not_its_place() -> None:
    contents = {"a.jpg": "1", "b.jpg": "1", "m.png": "2", "n.png": "2", "o.png": "3"}
    base = sample_id(_sample("a.jpg", "cat", "m.png"), contents.__getitem__)
    assert sample_id(_sample("b.jpg", "cat", "n.png"), contents.__getitem__) == base
    assert sample_id(_sample("a.jpg", "dog", "m.png"), contents.__getitem__) != base
    assert sample_id(_sample("a.jpg", "cat", "o.png"), contents.__getitem__) != base


def test_a_sample_listed_twice_is_one_member() -> None:
    with _table([_sample("a.jpg", "cat"), _sample("a.jpg", "cat")], draws=3) as table:
        assert len(table) == 3
        assert [member.draw for member in table.members(range(3))] != [0, 0, 0]


def test_member_keys_differ_by_draw() -> None:
    assert len({member_key("a", draw) for draw in range(64)}) == 64


def test_members_come_back_as_they_were_listed(tmp_path: Path) -> None:
    samples = _samples(5, 3)
    table = MemberTable.from_samples(samples, draws=2, digest=lambda key: f"d {key}", folder=tmp_path)
    members = table.members(range(len(table)))
    assert sorted(member.key for member in members) == [member.key for member in members]
    assert [key_text(numbers) for numbers in table.keys] == [member.key for member in members]
    for member in members:
        assert member.key == member_key(member.sample_id, member.draw)
        assert member.image_digest == f"d {member.sample.image}"
        assert member.sample_id == sample_id(member.sample, lambda key: f"d {key}")
    assert sorted((m.sample.image, m.sample.phrase, m.draw) for m in members) == sorted(
        (s.image, s.phrase, draw) for s in samples for draw in range(2)
    )
    assert not list(tmp_path.iterdir())  # nothing that a killed process would leave behind
    table.close()


@given(st.sets(st.integers(0, 2**128 - 1), max_size=40), st.sets(st.integers(0, 2**128 - 1), max_size=9))
def test_rows_are_found_by_key(present: set[int], absent: set[int]) -> None:
    listed = key_numbers(f"{key:032x}" for key in sorted(present))
    with _table([]) as table:
        table.keys = listed
        assert table.rows_with(listed).tolist() == list(range(len(present)))
        others = key_numbers(f"{key:032x}" for key in sorted(absent - present))
        assert (table.rows_with(others) == -1).all()


@given(images=st.integers(1, 12), phrases=st.integers(1, 5), size=st.integers(1, 20), seed=st.integers(0, 9))
def test_plan_covers_each_member_once_in_any_arrival(images: int, phrases: int, size: int, seed: int) -> None:
    samples = _samples(images, phrases)
    plans = _plans(samples, draws=2, size=size)
    shuffled = random.Random(seed).sample(samples, len(samples))  # noqa: S311 - a test's shuffle
    assert _plans(shuffled, draws=2, size=size) == plans
    keys = sorted(member.key for plan in plans for member in plan.members)
    assert keys == sorted(set(keys))
    assert len(keys) == images * phrases * 2
    shards_of_image = defaultdict(set)
    for plan in plans:
        assert len(plan.members) <= max(size, phrases)
        assert [m.key for m in plan.members] == sorted(m.key for m in plan.members)
        assert {member.draw for member in plan.members} == {plan.draw}
        for member in plan.members:
            shards_of_image[member.image_digest, member.draw].add(plan.shard_id)
    assert all(len(shards) == 1 for shards in shards_of_image.values())


def test_shards_are_filled() -> None:
    plans = _plans(_samples(50, 2), size=10)
    assert [len(plan.members) for plan in plans] == [10] * 10


def test_shard_id_depends_on_specification_and_members() -> None:
    samples = _samples(4, 2)
    (one,), (other_spec,) = _plans(samples), _plans(samples, spec_key="l")
    (fewer,) = _plans(samples[:-1])
    assert len({one.shard_id, other_spec.shard_id, fewer.shard_id}) == 3


def test_some_rows_alone_are_cut() -> None:
    with _table(_samples(6, 2)) as table:
        rows = np.array([0, 3, 4, 9])
        shards = list(plan_shards(table, spec_key="k", samples_per_shard=3, rows=rows))
        assert sorted(np.concatenate([shard.rows for shard in shards]).tolist()) == rows.tolist()


def test_a_draws_shards_do_not_depend_on_how_many_draws_there_are() -> None:
    samples = _samples(9, 2)
    few, many = _plans(samples, draws=2, size=5), _plans(samples, draws=5, size=5)
    assert few == [plan for plan in many if plan.draw < 2]
    assert [plan for plan in few if plan.draw == 0] == _plans(samples, size=5)


def test_a_table_knows_each_rows_draw() -> None:
    with _table(_samples(4, 3), draws=7) as table:
        assert table.draws.tolist() == [member.draw for member in table.members(range(len(table)))]


def test_the_names_of_shards_hold() -> None:
    # Written down with schema 4: a cache that is there stays valid until the schema is raised.
    assert [plan.shard_id for plan in _plans(_samples(7, 2), spec_key=SPEC.key, size=5)] == [
        "7562c62c21e86d4ffac69066944238ae",
        "362be111aed18754ecae8ce00337975a",
        "acba6378e8fd67ed0d60a3f5ca0b70ad",
        "22886844a3d432d460e58917fee3f9e9",
    ]
