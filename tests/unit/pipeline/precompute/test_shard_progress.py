"""How far a run of shards is."""

from typing import Any

import pytest

from pipeline.cache.committed_shard import CommittedShard
from pipeline.cache.receipt import Environment, LeftOut, Receipt, SampleSpan
from pipeline.precompute.progress import RATE_OVER_S, Progress, Snapshot
from pipeline.precompute.watch import ShardState, ShardWatch, WorkerState


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def shard(name: str, *, samples: int = 10, failed: tuple[str, ...] = (), filtered: int = 0) -> CommittedShard:
    def left_out(why: Any, reason: str) -> LeftOut:
        return LeftOut(key="0" * 32, image="a.png", phrase="a", why=why, reason=reason)

    made = Receipt(
        shard_id=name,
        object_key=f"{'0' * 64}/shards/{'0' * 32}-{'0' * 16}.tar",
        sha256="0" * 64,
        size=1000 * samples,
        samples=tuple(
            SampleSpan(key=f"{number:032x}", offset=0, size=1, xxh3="0" * 16) for number in range(samples)
        ),
        left_out=(
            *(left_out("failed", reason) for reason in failed),
            *(left_out("filtered", "nothing of the phrase lies in the view") for _ in range(filtered)),
        ),
        environment=Environment(device="cpu", versions={}),
    )
    return CommittedShard.from_receipts(made)


def at(shard: str, computed: int) -> WorkerState:
    state = ShardState(shard_id=shard, stage="computing", decoded=computed, computed=computed, members=20)
    return WorkerState(worker="host:1", shards=(state,))


def test_counts_rates_and_time_left() -> None:
    clock, seen = Clock(), list[Snapshot]()
    progress = Progress(shards=5, members=100, clock=clock)
    progress.listen(seen.append)
    assert progress.snapshot().seconds_left is None
    clock.now += 10
    progress.shard_committed(shard("a", samples=16, failed=("torn", "empty", "torn"), filtered=1), members=20)
    clock.now += 10
    progress.workers_are([at("b", 12)])
    now = seen[-1]
    assert (now.shards, now.shards_total, now.members, now.samples, now.bytes_written) == (
        1,
        5,
        32,
        16,
        16000,
    )
    assert (now.failed, now.filtered, now.reasons) == (3, 1, (("torn", 2), ("empty", 1)))
    assert now.members_per_s == pytest.approx(32 / 20)
    assert now.bytes_per_s == pytest.approx(800)
    assert now.seconds_left == pytest.approx(68 / 1.6)
    assert str(now) == (
        "32 of 100 samples in 1 of 5 shards; 1.6 samples/s, 0.0 MB/s; 42 s left; 3 failed, 1 filtered"
    )
    clock.now += 10
    # Its 12 samples in flight are not counted again when it is committed.
    progress.shard_committed(shard("b"), members=20)
    assert seen[-1].members == 40


def test_rates_are_of_late() -> None:
    clock = Clock()
    progress = Progress(members=10**6, clock=clock)
    for _ in range(100):  # slow at first
        clock.now += 30
        progress.shard_committed(shard("a"), members=10)
    for _ in range(200):
        clock.now += 30
        progress.shard_committed(shard("a"), members=300)
    assert clock.now - 100 > 2 * RATE_OVER_S
    assert progress.snapshot().members_per_s == pytest.approx(10, rel=0.06)


def test_reasons_without_end_are_counted_together() -> None:
    progress = Progress()
    for number in range(3000):
        progress.shard_committed(shard("a", failed=(f"image {number} is torn",)), members=11)
    now = progress.snapshot()
    assert now.failed == 3000
    assert now.reasons[0] == ("other reasons", 2000)
    assert len(now.reasons) == 1001


def test_a_watch_tells_stage_counts_and_seconds() -> None:
    watch = ShardWatch(shard_id="a" * 32, members=2)
    assert watch.state.stage == "waiting"
    with watch.stage("decoding"):
        watch.decoded()
        watch.decoded()
        assert watch.state.stage == "decoding"
    watch.computed()
    with pytest.raises(ZeroDivisionError), watch.stage("computing"):
        raise ZeroDivisionError
    assert (watch.state.stage, watch.state.decoded, watch.state.computed) == ("waiting", 2, 1)
    assert watch.seconds.keys() == {"decoding", "computing"}
    state = WorkerState(worker="host:1", shards=(watch.state,))
    assert str(state) == "host:1 waiting aaaaaaaa"
    assert str(WorkerState(worker="host:2")) == "host:2 idle"


def test_a_late_report_of_a_committed_shard_counts_it_once() -> None:
    progress = Progress(shards=2, members=20)
    progress.workers_are([at("a", 10)])
    progress.shard_committed(shard("a"), members=10)
    progress.workers_are([at("a", 10)])  # asked before, answered after
    assert progress.snapshot().members == 10
    assert progress.snapshot().workers == (WorkerState(worker="host:1", shards=()),)
