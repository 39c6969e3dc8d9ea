"""Which worker gets which shard, and how many workers there should be."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cache.plan import ShardPlan
from pipeline.cache.spec import CacheSpec, FeaturesConfig, PolicyConfig
from pipeline.datasets.opening import DataConfig
from pipeline.precompute.dispatch import SHARDS_AT_ONCE, Dispatch
from pipeline.precompute.worker import SetOfShards, ShardTask

SPEC = CacheSpec(
    ldm_digest="a" * 64,
    features=FeaturesConfig(),
    policy=PolicyConfig.model_validate({"view": {"policy": "squash", "size": 64}}),
)
SET = SetOfShards(set_name="train", spec=SPEC, data=DataConfig(format="folder", root="photos"))


@dataclass(eq=False)
class Worker:
    name: int


def tasks(count: int) -> Iterator[ShardTask]:
    for number in range(count):
        yield ShardTask(of=SET, plan=ShardPlan(shard_id=f"{number:032x}", members=()))


def dispatch(count: int, *, workers: int, attempts: int = 3) -> Dispatch[Worker]:
    return Dispatch(tasks(count), shards=count, workers=workers, attempts=attempts)


def given_out(of: Dispatch[Worker], *, starting: int = 0) -> list[tuple[int, int]]:
    """Worker and shard, as long as something is given."""
    given = []
    while found := of.give(starting=starting):
        given.append((found[0].name, int(found[1].plan.shard_id, 16)))
    return given


def test_so_many_workers_are_wanted_as_would_have_a_shard() -> None:
    few = dispatch(3, workers=8)
    assert (few.wanted, few.workers) == (3, 0)
    many = dispatch(100, workers=8)
    assert many.wanted == 8
    assert given_out(many) == []  # nobody is there: pending workers get nothing
    first = Worker(0)
    many.joined(first)
    assert given_out(many) == [(0, 0), (0, 1)]
    assert (many.wanted, many.unfinished) == (8, 100)


def test_a_second_shard_only_where_the_others_could_have_a_first_one() -> None:
    one = dispatch(2, workers=2)
    one.joined(Worker(0))
    assert given_out(one, starting=1) == [(0, 0)]  # the other will be there soon
    assert given_out(one, starting=0) == [(0, 1)]  # or it found no room


def test_who_has_nothing_left_may_go() -> None:
    two, workers = dispatch(3, workers=2), [Worker(0), Worker(1)]
    for worker in workers:
        two.joined(worker)
    running = []
    while found := two.give():
        running.append(found)
    assert [worker.name for worker, _ in running] == [0, 1]
    two.done(*running.pop(0))
    assert two.spare() is None
    running.append(two.give() or pytest.fail("a shard is left"))
    assert (two.wanted, two.spare()) == (2, None)
    two.done(*running.pop())
    assert two.spare() is workers[0]
    assert two.wanted == 1  # an autoscaler may take the other one's node
    two.left(workers[0])
    assert (two.workers, two.spare()) == (1, None)
    two.done(*running.pop())
    assert (two.unfinished, two.wanted) == (0, 0)


def test_a_shard_that_lost_a_worker_is_computed_alone_and_is_named_in_the_end() -> None:
    one, worker = dispatch(9, workers=1, attempts=2), Worker(0)
    one.joined(worker)
    first, second = one.give(), one.give()
    assert first is not None
    assert second is not None
    one.left(worker)
    for _, task in (first, second):
        one.lost(worker, task, OSError("gone"))
    again = Worker(1)
    one.joined(again)
    alone = one.give()
    assert alone is not None
    assert alone[1].name == first[1].name
    assert one.give() is None
    one.left(again)
    with pytest.raises(RuntimeError, match=f"shard {first[1].plan.shard_id} lost its worker 2 times"):
        one.lost(again, alone[1], OSError("gone again"))


def test_fewer_tasks_than_told_end_it() -> None:
    wrong = Dispatch[Worker](tasks(1), shards=5, workers=2, attempts=1)
    worker = Worker(0)
    wrong.joined(worker)
    found = wrong.give()
    assert found is not None
    assert wrong.give() is None
    wrong.done(*found)
    assert (wrong.unfinished, wrong.wanted) == (0, 0)


@given(seed=st.integers(0, 10**6), count=st.integers(1, 40), bound=st.integers(1, 6))
def test_whatever_happens_each_shard_is_committed_once(seed: int, count: int, bound: int) -> None:
    """Workers join and are lost at random; nobody has more than two shards, nobody a second beside a lone one."""
    generator = np.random.default_rng(seed)
    of = dispatch(count, workers=bound, attempts=10**6)
    there: list[Worker] = []
    running: list[tuple[Worker, ShardTask]] = []
    committed: list[str] = []
    while of.unfinished:
        while found := of.give():
            running.append(found)
            assert sum(worker is found[0] for worker, _ in running) <= SHARDS_AT_ONCE
        while (spare := of.spare()) is not None:
            there.remove(spare)
            of.left(spare)
        assert of.workers == len(there) <= bound
        if len(there) < of.wanted and generator.random() < 0.5:
            there.append(Worker(len(there)))
            of.joined(there[-1])
        elif there and generator.random() < 0.2:
            victim = there.pop(int(generator.integers(len(there))))
            of.left(victim)
            for worker, task in [one for one in running if one[0] is victim]:
                of.lost(worker, task, OSError("gone"))
            running = [one for one in running if one[0] is not victim]
        elif running:
            done = running.pop(int(generator.integers(len(running))))
            committed.append(done[1].plan.shard_id)
            of.done(*done)
    assert sorted(committed) == [f"{number:032x}" for number in range(count)]
