"""How far a run of shards is, as people see it."""

import io
import logging
import sys

import pytest

from jobs.progress import describe, show_progress
from pipeline.cache.committed_shard import CommittedShard
from pipeline.cache.receipt import Environment, LeftOut, Receipt
from pipeline.precompute.progress import Progress
from pipeline.precompute.watch import ShardState, Stage, WorkerState


def worker(name: str, *stages: Stage) -> WorkerState:
    shards = tuple(
        ShardState(shard_id=f"{number}" * 8 + name, stage=stage, decoded=9, computed=5, members=10)
        for number, stage in enumerate(stages)
    )
    return WorkerState(worker=name, shards=shards)


def shard(*reasons: str) -> CommittedShard:
    left_out = [
        LeftOut(key="0" * 32, image="a.png", phrase="a", why="failed", reason=reason) for reason in reasons
    ]
    made = Receipt(
        shard_id="f" * 32,
        object_key=f"{'0' * 64}/shards/{'f' * 32}-{'0' * 16}.tar",
        sha256="0" * 64,
        size=2_000_000,
        samples=(),
        left_out=tuple(left_out),
        environment=Environment(device="cpu", versions={}),
    )
    return CommittedShard.from_receipts(made)


def test_a_line_now_and_then_where_there_is_no_terminal(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = 0.0
    progress = Progress(shards=3, members=30, clock=lambda: now)
    with show_progress("precompute", progress):
        for _ in range(4):
            now += 5
            progress.workers_are([worker("host:7", "computing", "decoding"), worker("host:8")])
        now += 15
        progress.shard_committed(shard("the mask is empty"), members=10)
    first, second = (record.getMessage() for record in caplog.records)
    at = "workers: host:7 computing 00000000, decoding 11111111, host:8 idle"
    assert first == (
        f"precompute: 10 of 30 samples in 0 of 3 shards; 0.7 samples/s, 0.0 MB/s; 30 s left; {at}"
    )
    assert second == (
        "precompute: 20 of 30 samples in 1 of 3 shards; 0.6 samples/s, 0.1 MB/s; 18 s left; "
        f"1 failed, 0 filtered (the mask is empty); {at}"
    )


def test_many_workers_and_many_reasons_are_summed_up() -> None:
    progress = Progress(clock=lambda: 1.0)
    assert describe(progress.snapshot()).endswith("; workers: starting")
    progress.shard_committed(shard("torn", "empty", "torn"), members=10)
    progress.workers_are([worker(f"host:{number}", "computing", "uploading") for number in range(9)])
    assert describe(progress.snapshot()).endswith(
        "; 3 failed, 0 filtered (mostly: torn, 2 times); workers: 9 with shards 9 computing, 9 uploading; 0 idle"
    )


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "250")
    progress = Progress(shards=2, members=20)
    with show_progress("precompute", progress):
        progress.shard_committed(shard(), members=10)
        progress.workers_are([worker("host:7", "uploading")])
    assert "15 of 20 samples in 1 of 2 shards" in terminal.getvalue()
    assert "host:7 uploading 00000000" in terminal.getvalue()
    assert caplog.records == []
