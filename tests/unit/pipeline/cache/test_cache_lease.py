"""Leases: renewed while held, gone afterwards, dead by the store's clock, and never beside a collector's mark."""

import errno
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from unit.pipeline.cache.made_cache import write_cache
from unit.pipeline.cache.made_family import COLUMN, LARGE, OTHER, SMALL

from ldznet.errors import UserError
from pipeline.cache import heartbeat
from pipeline.cache.collection import collect, preview
from pipeline.cache.garbage import Drop
from pipeline.cache.heartbeat import DEAD_AFTER_S, Heartbeat
from pipeline.cache.lease import (
    COLLECTING_KEY,
    LEASE_PREFIX,
    collecting,
    family,
    lease,
    list_leases,
    reading_lease,
    store_time,
)
from pipeline.cache.manifest import answer_request, find_manifest
from pipeline.cache.relation import relate
from pipeline.cache.spec import CacheSpec, FeaturesConfig, PolicyConfig
from pipeline.object_store.store import ObjectInfo, ObjectStore


@dataclass(frozen=True)
class Aged:
    """A store whose clock has gone on, so that what lies there is that old; what is written by us is new."""

    inner: ObjectStore
    old: dict[str, float]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def stat(self, key: str) -> ObjectInfo | None:
        info = self.inner.stat(key)
        return info and replace(info, modified=info.modified - self.old.get(key, 0))

    def list(self, prefix: str = "") -> Any:
        for info in self.inner.list(prefix):
            yield replace(info, modified=info.modified - self.old.get(info.key, 0))


def test_a_family_is_what_a_request_can_take_over() -> None:
    assert family(SMALL) == family(LARGE) == family(COLUMN) != family(OTHER)
    specs = [SMALL, LARGE, OTHER] + [
        SMALL.model_copy(update={"features": FeaturesConfig.model_validate(changed)})
        for changed in (
            {"blocks": (1,)},
            {"stored_dtype": "fp32"},
            {"stored_dtype": "int8", "stored_from": "fp16"},
            {"stored_dtype": "int8", "scale_group": 4},
            {"seed": 1},
            {"threads": 2},
        )
    ]
    specs += [
        SMALL.model_copy(update={"policy": PolicyConfig.model_validate(changed)})
        for changed in ({"draws": 2}, {"draws": 4}, {"timesteps": {"grid": (100, 400)}}, {"prompts": ("{}",)})
    ]
    assert family(specs[-4]) == family(specs[-3]) == family(SMALL)
    for wanted in specs:
        for have in specs:
            assert relate(wanted, have) is None or family(wanted) == family(have)


def test_a_lease_is_there_while_it_is_held(store: ObjectStore) -> None:
    with lease(store, [SMALL, LARGE, OTHER]) as held:
        held.ensure()
        found = list_leases(store, now=store_time(store))
        assert sorted(one.family for one in found) == sorted({family(SMALL), family(OTHER)})
        assert all(one.live and one.holder is not None for one in found)
    assert list(store.list()) == []


def test_a_lease_goes_with_a_job_that_fails(store: ObjectStore) -> None:
    with pytest.raises(ZeroDivisionError), lease(store, [SMALL]):
        1 / 0  # noqa: B018
    assert list(store.list()) == []


def test_a_lease_that_may_not_be_released_fails_no_finished_job(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UserError("the store refuses: the token has expired")

    with lease(store, [SMALL]):
        monkeypatch.setattr(type(store), "delete", refuse)
    assert "the token has expired" in caplog.text


def test_a_lease_is_renewed(store: ObjectStore) -> None:
    with lease(store, [SMALL], every_s=0.01):
        first = next(store.list(LEASE_PREFIX))
        renewed = threading.Event()
        for _ in range(500):
            if next(store.list(LEASE_PREFIX)).modified > first.modified:
                renewed.set()
                break
            renewed.wait(0.01)
        assert renewed.is_set()
    assert list(store.list()) == []


def test_a_lease_not_renewed_is_dead(store: ObjectStore) -> None:
    with lease(store, [SMALL]):
        now = store_time(store)
        assert [one.live for one in list_leases(store, now=now + DEAD_AFTER_S - 2)] == [True]
        assert [one.live for one in list_leases(store, now=now + DEAD_AFTER_S + 2)] == [False]


def test_a_mark_makes_jobs_wait_until_it_is_gone(store: ObjectStore) -> None:
    got = threading.Event()

    def job() -> None:
        with lease(store, [SMALL], poll_s=0.01):
            got.set()

    thread = threading.Thread(target=job)
    with collecting(store):
        thread.start()
        assert not got.wait(0.3)
        assert [one.live for one in list_leases(store, now=store_time(store))] == [True]
    thread.join(60)
    assert got.is_set()
    assert list(store.list()) == []


def test_a_dead_mark_holds_nobody_up(store: ObjectStore) -> None:
    store.put(COLLECTING_KEY, b"{}")
    aged = Aged(store, {COLLECTING_KEY: DEAD_AFTER_S + 2})
    with lease(aged, [SMALL], longest_wait_s=0):  # type: ignore[arg-type]
        pass


def test_waiting_has_an_end(store: ObjectStore) -> None:
    with (
        collecting(store),
        pytest.raises(UserError, match="run again when it is done"),
        lease(store, [SMALL], longest_wait_s=0.05, poll_s=0.01),
    ):
        pass
    assert list(store.list()) == []


def test_one_collector_at_a_time(store: ObjectStore) -> None:
    with collecting(store) as first:
        with pytest.raises(UserError, match="another `ldznet cache collect` is at work"), collecting(store):
            pass
        first.heartbeat.ensure()
    assert list(store.list()) == []


def test_a_dead_collectors_mark_is_taken_over(store: ObjectStore) -> None:
    store.put(COLLECTING_KEY, b"{}")
    aged: Any = Aged(store, {COLLECTING_KEY: DEAD_AFTER_S + 2})
    with collecting(aged) as mark:
        mark.heartbeat.ensure()
    assert list(store.list()) == []


def test_a_collector_whose_mark_was_taken_stops(store: ObjectStore) -> None:
    with collecting(store, every_s=0.01) as mark:
        store.put(COLLECTING_KEY, b'{"another": "collector"}')
        for _ in range(500):
            if not mark.heartbeat.holds:
                break
            threading.Event().wait(0.01)
        with pytest.raises(OSError, match="run it again"):
            mark.heartbeat.ensure()
    assert store.get(COLLECTING_KEY) == b'{"another": "collector"}'  # not ours to remove


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_mark_that_was_not_renewed_in_time_never_holds_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(heartbeat, "_clock", clock)
    renewals = []
    beat = Heartbeat(lambda: not renewals.append(None), what="the mark", every_s=1e6)
    beat.start()
    clock.now += heartbeat.SURE_FOR_S
    beat.ensure()
    clock.now += 1  # the machine slept
    beat._beat()
    assert len(renewals) == 2
    with pytest.raises(OSError, match="the mark was not renewed"):
        beat.ensure()
    beat.stop()


def test_a_store_that_is_away_for_a_while_is_survived(store: ObjectStore) -> None:
    tries = []

    def renew() -> bool:
        tries.append(None)
        if len(tries) == 2:
            raise OSError("away")
        return True

    beat = Heartbeat(renew, what="the mark", every_s=0.01)
    beat.start()
    for _ in range(500):
        if len(tries) >= 3:
            break
        threading.Event().wait(0.01)
    beat.stop()
    beat.ensure()
    assert not beat.failing


def test_two_specs_of_one_family_take_one_lease(store: ObjectStore) -> None:
    specs: list[CacheSpec] = [SMALL, LARGE, SMALL]
    with lease(store, specs):
        assert len(list(store.list(LEASE_PREFIX))) == 1


def test_a_reader_keeps_what_it_reads_from_being_dropped(store: ObjectStore, tmp_path: Path) -> None:
    manifest = write_cache(store, tmp_path, samples=6, per_shard=3)
    answer_request(store, "ab12", manifest)
    drop = Drop(cache_key=manifest.cache_key)
    shown = preview(store, older_than_s=0, drop=drop)
    assert shown.garbage
    with reading_lease(store, [manifest.spec]):
        with pytest.raises(
            UserError, match=r"at work on .* \(training, .*, process \d+\): wait until it ends"
        ):
            preview(store, older_than_s=0, drop=drop)
        with pytest.raises(UserError, match="wait until it ends"):  # one that began to look before we held it
            collect(store, shown, older_than_s=0, drop=drop)
        assert find_manifest(store, "ab12") == manifest
        assert all(store.stat(shard.object_key) for shard in manifest.shards)
        assert preview(store, older_than_s=0).leased == {manifest.cache_key: ANY}
    collect(store, preview(store, older_than_s=0, drop=drop), older_than_s=0, drop=drop)
    assert list(store.list()) == []


def test_a_reader_that_was_killed_holds_for_minutes(store: ObjectStore, tmp_path: Path) -> None:
    manifest = write_cache(store, tmp_path, samples=2, per_shard=2)
    (key,) = killed_reader(store, manifest.spec)
    drop = Drop(cache_key=manifest.cache_key)
    with pytest.raises(UserError, match="wait until it ends"):
        preview(store, older_than_s=0, drop=drop)
    aged: Any = Aged(store, {key: DEAD_AFTER_S + 5})
    found = preview(aged, older_than_s=0, drop=drop)
    assert {one.kind for one in found.garbage} >= {"manifest", "shard", "lease"}


def test_a_reader_waits_for_a_collector(store: ObjectStore) -> None:
    store.put(COLLECTING_KEY, b"{}")
    with (
        pytest.raises(UserError, match="has been at work"),
        reading_lease(store, [SMALL], longest_wait_s=0.01, poll_s=0.01),
    ):
        pass
    assert [info.key for info in store.list()] == [COLLECTING_KEY]


@dataclass(frozen=True)
class ReadOnly:
    """A store that takes no writes from us."""

    inner: ObjectStore
    error: Exception

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def put(self, key: str, body: Any) -> None:
        raise self.error


@pytest.mark.parametrize(
    "error", [UserError("no permission for s3://b/leases"), OSError(errno.EROFS, "Read-only file system")]
)
def test_reading_needs_no_right_to_write(
    error: Exception, store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    readable: Any = ReadOnly(store, error)
    with reading_lease(readable, [SMALL]):
        pass
    assert caplog.text.count("is not guarded against `ldznet cache collect --drop`") == 1
    broken: Any = ReadOnly(store, OSError(errno.EIO, "input/output error"))
    with pytest.raises(OSError, match="input/output"), reading_lease(broken, [SMALL]):
        pass


KILLED_READER = """
import os, signal, sys
from pipeline.cache.lease import list_leases, reading_lease
from pipeline.cache.spec import CacheSpec
from pipeline.object_store.opening import open_store
store, spec = open_store(sys.argv[1]), CacheSpec.model_validate_json(sys.argv[2])
with reading_lease(store, [spec]):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_reader(store: ObjectStore, spec: CacheSpec) -> list[str]:
    """The leases that a killed training leaves."""
    command = [sys.executable, "-c", KILLED_READER, store.url, spec.model_dump_json()]
    done = subprocess.run(command, check=False, cwd=Path(__file__).parents[4])
    assert done.returncode == -signal.SIGKILL
    return [info.key for info in store.list(LEASE_PREFIX)]


def test_the_clock_of_a_killed_process_is_collected_once_it_is_dead(store: ObjectStore) -> None:
    clock = f"{LEASE_PREFIX}clock-0123456789abcdef.json"
    store.put(clock, b"{}\n")
    assert list_leases(store, now=store_time(store)) == []
    dead = Aged(inner=store, old={clock: DEAD_AFTER_S + 60})
    (found,) = list_leases(dead, now=store_time(store))  # type: ignore[arg-type]
    assert (found.info.key, found.live) == (clock, False)
