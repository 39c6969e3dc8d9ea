"""Shards handed to workers on a real Ray: lazily, two at a time each, seen from outside, and whoever dies."""

import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from jobs.local_ray import ray_session
from ldznet.errors import UserError
from ldznet.ldm_folder import ldm_digest
from pipeline.cache.content_digest import ContentDigests
from pipeline.cache.member_table import MemberTable
from pipeline.cache.plan import plan_shards
from pipeline.cache.spec import CacheSpec, FeaturesConfig, PolicyConfig
from pipeline.datasets.opening import DataConfig, open_dataset
from pipeline.object_store.opening import open_store
from pipeline.precompute.progress import Progress, Snapshot
from pipeline.precompute.worker_pool import SetOfShards, ShardTask, ShardWorker, WorkerSetup, run_shards
from pipeline.recipe import CacheConfig

long = (
    pytest.mark.long
)  # `make test-cluster`; the others are the short form: a worker killed, and its metrics

PATIENCE_S = 120


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """One Ray for the module, that tells its metrics every second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # workers know `DeadlyMask`
        with ray_session(cpus=3):
            yield


@pytest.fixture
def tasks(small_data: Path, miniature_ldm: Path) -> list[ShardTask]:
    """A dozen shards and more, of one photo each."""
    data = DataConfig(format="folder", root=str(small_data))
    dataset = open_dataset(data)
    policy = PolicyConfig.model_validate({"view": {"policy": "published", "size": 64}, "draws": 4})
    spec = CacheSpec(
        ldm_digest=ldm_digest(miniature_ldm), features=FeaturesConfig(stored_dtype="fp32"), policy=policy
    )
    digests = ContentDigests(store=dataset.store)
    with MemberTable.from_samples(dataset.samples("train"), draws=4, digest=digests) as table:
        shards = [shard.pack(table) for shard in plan_shards(table, spec_key=spec.key, samples_per_shard=12)]
    assert len(shards) == 12
    of = SetOfShards(set_name="train", spec=spec, data=data)
    return [ShardTask(of=of, plan=shard) for shard in shards]


@pytest.fixture
def setup_in(miniature_ldm: Path, tasks: list[ShardTask]) -> Callable[[Path], WorkerSetup]:
    """What workers that write into a folder need to know."""

    def make(folder: Path) -> WorkerSetup:
        return WorkerSetup(
            ldm_source=str(miniature_ldm),
            ldm_digest=tasks[0].of.spec.ldm_digest,
            features=tasks[0].of.spec.features,
            cache_url=str(folder),
        )

    return make


@pytest.fixture
def one_by_one(
    tasks: list[ShardTask], setup_in: Callable[[Path], WorkerSetup], tmp_path: Path
) -> dict[str, bytes]:
    """Every object that one worker writes in this process, one shard after another."""
    worker = ShardWorker(setup_in(tmp_path / "one by one"))
    for task in tasks:
        worker.commit(task)
    return objects(tmp_path / "one by one")


def objects(folder: Path) -> dict[str, bytes]:
    store = open_store(folder)
    return {info.key: store.get(info.key) for info in store.list()}


def worker_processes() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline()[:1])
        except psutil.NoSuchProcess:
            continue
        if title.startswith("ray::ShardWorker"):
            found.append(process)
    return found


def wait_for(what: Callable[[], Any]) -> Any:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        found = what()
        if found:
            return found
        time.sleep(0.02)
    raise TimeoutError(f"nothing within {PATIENCE_S} s")


@long
def test_tasks_are_taken_as_they_are_needed_and_the_bytes_are_those_of_one_at_a_time(
    *,
    ray_here: None,
    tasks: list[ShardTask],
    setup_in: Callable[[Path], WorkerSetup],
    one_by_one: dict[str, bytes],
    tmp_path: Path,
) -> None:
    taken, seen = 0, list[Snapshot]()

    def lazily() -> Iterator[ShardTask]:
        nonlocal taken
        for task in tasks:
            taken += 1
            yield task

    progress = Progress(shards=len(tasks), members=sum(len(task.plan) for task in tasks))
    progress.listen(seen.append)
    config = CacheConfig(url=str(tmp_path / "cache"), workers=2)
    committed = {}
    for task, shard in run_shards(
        lazily(), shards=12, setup=setup_in(tmp_path / "cache"), config=config, progress=progress
    ):
        committed[task.plan.shard_id] = shard
        assert taken <= len(committed) + 2 * 2 + 2  # two in flight a worker, one waiting for each
    assert objects(tmp_path / "cache") == one_by_one
    assert committed.keys() == {task.plan.shard_id for task in tasks}
    wait_for(lambda: not worker_processes())
    last = seen[-1]
    assert (last.shards, last.members, last.seconds_left) == (12, 12 * 12, 0)
    assert last.samples == sum(len(shard.rows) for shard in committed.values())
    assert last.bytes_written == sum(shard.reference.size for shard in committed.values())
    assert [snapshot.shards for snapshot in seen] == sorted(snapshot.shards for snapshot in seen)


@long
def test_who_has_nothing_left_is_let_go_before_the_end(
    ray_here: None, tasks: list[ShardTask], setup_in: Callable[[Path], WorkerSetup], tmp_path: Path
) -> None:
    """So that an autoscaler may take the node; and what goes through Ray is small beside the shards."""
    import ray

    config = CacheConfig.model_validate({"url": str(tmp_path), "workers": {"min": 1, "max": 2}})
    runs = run_shards(tasks, shards=12, setup=setup_in(tmp_path), config=config)
    committed = [next(runs) for _ in range(11)]
    wait_for(lambda: len(worker_processes()) <= 1)  # nobody asks the pool for more meanwhile
    committed += runs
    assert len(committed) == 12
    wait_for(lambda: not worker_processes())
    inline = 100 << 10  # bytes; what is larger takes up Ray's object store
    for task, shard in committed:
        through_ray = len(ray.cloudpickle.dumps(task)), len(ray.cloudpickle.dumps(shard))
        assert max(through_ray) < inline < shard.reference.size, through_ray


@long
def test_one_worker_is_seen_at_two_shards(
    ray_here: None,
    tasks: list[ShardTask],
    setup_in: Callable[[Path], WorkerSetup],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.precompute.worker_pool._POLL_S", 0.02)
    seen = list[Snapshot]()
    progress = Progress()
    progress.listen(seen.append)
    config = CacheConfig(url=str(tmp_path), workers=1)
    assert (
        len(
            list(
                run_shards(iter(tasks), shards=12, setup=setup_in(tmp_path), config=config, progress=progress)
            )
        )
        == 12
    )
    states = [state for snapshot in seen for state in snapshot.workers]
    assert len({state.worker for state in states}) == 1
    assert max(len(state.shards) for state in states) == 2
    stages = {shard.stage for state in states for shard in state.shards}
    assert {"decoding", "computing"} <= stages
    assert all(shard.computed <= shard.members == 12 for state in states for shard in state.shards)


def test_metrics_are_served_to_prometheus(
    ray_here: None, tasks: list[ShardTask], setup_in: Callable[[Path], WorkerSetup], tmp_path: Path
) -> None:
    import ray

    port = ray.nodes()[0]["MetricsExportPort"]
    key = tasks[0].of.cache_key[:12]

    def told() -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        found = {}
        for line in lines:
            if line.startswith("ray_ldznet_precompute_") and f'cache="{key}"' in line:
                name, value = line.partition("{")[0], float(line.rpartition(" ")[2])
                found[name] = found.get(name, 0.0) + value
        return found

    before = told().get("ray_ldznet_precompute_samples_total", 0.0)
    config = CacheConfig(url=str(tmp_path), workers=1)
    runs = run_shards(tasks, shards=12, setup=setup_in(tmp_path), config=config)
    committed = [next(runs)[1] for _ in range(6)]
    samples = before + sum(len(shard.rows) for shard in committed)
    # The worker is alive, waiting to be asked for more: what it counts is served.
    wait_for(lambda: told().get("ray_ldznet_precompute_samples_total", 0.0) >= samples)
    figures = told()
    runs.close()
    assert figures["ray_ldznet_precompute_bytes_total"] > 1e5
    assert figures["ray_ldznet_precompute_shards_total"] >= 6
    assert figures["ray_ldznet_precompute_stage_seconds_count"] >= 3 * 6


def test_both_shards_of_a_killed_worker_are_computed_by_another(
    *,
    ray_here: None,
    tasks: list[ShardTask],
    setup_in: Callable[[Path], WorkerSetup],
    one_by_one: dict[str, bytes],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = CacheConfig(url=str(tmp_path / "cache"), workers=1, attempts=2)
    done = 0
    for _ in run_shards(tasks, shards=12, setup=setup_in(tmp_path / "cache"), config=config):
        done += 1
        if done == 3:
            (victim,) = worker_processes()
            victim.send_signal(signal.SIGKILL)
    assert done == 12
    assert caplog.text.count("a worker was lost at shard") == 2
    assert objects(tmp_path / "cache") == one_by_one


@dataclass(frozen=True)
class DeadlyMask:
    """Ends the process that decodes it, as the system does with one that takes too much memory."""

    def identity(self, digest: Callable[[str], str]) -> str:
        return "deadly"

    def decode(self, read: Callable[[str], bytes], *, width: int, height: int) -> NDArray[np.bool_]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@long
def test_the_shard_that_kills_is_named_and_spoils_no_other(
    *,
    ray_here: None,
    tasks: list[ShardTask],
    setup_in: Callable[[Path], WorkerSetup],
    tmp_path: Path,
) -> None:
    first, *rest = (whole := tasks[1].plan.unpack()).members
    deadly = replace(first, sample=replace(first.sample, mask=DeadlyMask()))
    plan = replace(whole, members=(deadly, *rest))
    hurt = [tasks[0], replace(tasks[1], plan=plan), *tasks[2:]]
    config = CacheConfig(url=str(tmp_path), workers=1, attempts=3)
    runs = run_shards(hurt, shards=12, setup=setup_in(tmp_path), config=config)
    with pytest.raises(RuntimeError, match=f"shard {plan.shard_id} lost its worker 3 times"):
        list(runs)
    wait_for(lambda: not worker_processes())


@long
def test_what_a_worker_refuses_ends_the_run_and_leaves_nothing_running(
    ray_here: None, tasks: list[ShardTask], setup_in: Callable[[Path], WorkerSetup], tmp_path: Path
) -> None:
    setup = replace(setup_in(tmp_path), ldm_digest="another")
    with pytest.raises(UserError, match="is not the same on every node"):
        list(run_shards(tasks, shards=12, setup=setup, config=CacheConfig(url=str(tmp_path), workers=2)))
    wait_for(lambda: not worker_processes())


@long
def test_room_is_waited_for_and_not_for_ever(
    ray_here: None, tasks: list[ShardTask], setup_in: Callable[[Path], WorkerSetup], tmp_path: Path
) -> None:
    config = CacheConfig(url=str(tmp_path), workers=2, accelerator="H100", wait_minutes=0.01)
    with pytest.raises(UserError, match=r"had room for 0 workers.*each takes 1 CPUs on H100; add nodes"):
        list(run_shards(tasks, shards=12, setup=setup_in(tmp_path), config=config))
    assert not worker_processes()


@long
def test_who_stops_taking_leaves_nothing_running(
    ray_here: None, tasks: list[ShardTask], setup_in: Callable[[Path], WorkerSetup], tmp_path: Path
) -> None:
    before = threading.active_count()
    config = CacheConfig(url=str(tmp_path), workers=2)
    runs = run_shards(tasks, shards=12, setup=setup_in(tmp_path), config=config)
    next(runs)
    assert worker_processes()
    runs.close()
    wait_for(lambda: not worker_processes())
    assert threading.active_count() <= before + 1
