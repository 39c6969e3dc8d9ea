"""Members packed for another process are those that the table itself gives."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cache import member_table
from pipeline.cache.member_table import MemberTable
from pipeline.cache.plan import plan_shards
from pipeline.datasets.masks import FileMask, PolygonMask
from pipeline.datasets.sample import Sample


def sample(number: int) -> Sample:
    """Every third has a mask of another kind, and phrases are of unequal length."""
    mask = FileMask(key="m.png") if number % 3 else PolygonMask.from_polygons([[[0, 0], [0, 9], [number, 9]]])
    return Sample(
        image_id=str(number // 2),
        label_id=str(number),
        image=f"{number // 2}.jpg",
        phrase="x" * (number % 7 + 1) + str(number),
        mask=mask,
        split="train",
    )


@given(
    numbers=st.lists(st.integers(0, 30), min_size=1, max_size=40),
    draws=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_packed_members_are_the_tables_own(numbers: list[int], draws: int, seed: int) -> None:
    """Also where the data set lists a sample twice, whose second record nobody reads."""
    listed = [sample(number) for number in numbers]
    with MemberTable.from_samples(listed, draws=draws, digest=lambda key: f"digest of {key}") as table:
        rows = np.random.default_rng(seed).permutation(len(table))[: len(table) // 2 + 1]
        packed = table.pack(rows)
        assert len(packed) == len(rows)
        assert tuple(packed.unpack()) == table.members(rows)


def test_a_packed_plan_is_the_plan() -> None:
    listed = [sample(number) for number in range(30)]
    with MemberTable.from_samples(listed, draws=2, digest=lambda key: f"digest of {key}") as table:
        for shard in plan_shards(table, spec_key="k", samples_per_shard=7):
            there = pickle.loads(pickle.dumps(shard.pack(table)))
            plan = shard.plan(table)
            assert (len(there), there.unpack()) == (len(plan), plan)
            assert plan.unpack() is plan


def test_a_large_file_of_records_is_let_go_of_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member_table, "_MOST_RESIDENT", 0)
    monkeypatch.setattr(member_table, "_PACKS_RESIDENT", 2)
    with MemberTable.from_samples([sample(number) for number in range(30)], draws=1, digest=str) as table:
        for row in range(30):
            assert tuple(table.pack(np.array([row])).unpack()) == table.members([row])
