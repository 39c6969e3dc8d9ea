"""Precompute under fire: lost workers, racing drivers, killed drivers. The result is always the same, and whole."""

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from jobs.local_ray import ray_session
from jobs.precompute import main
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore

pytestmark = pytest.mark.long  # `make test-cluster`

SHARDS = 12 * 2 + 1  # two a draw, and that of the other set
PATIENCE_S = 600.0  # of a machine that does much else; nothing waits so long that goes well


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, small_recipe_in: Callable[..., Path]) -> Path:
    return small_recipe_in(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def arguments(recipe: Path) -> list[str]:
    """Many draws, so that a run takes long enough to be struck."""
    return [str(recipe), "sets.train.draws=12"]


@pytest.fixture(scope="module")
def ray_here(seaweedfs: Any) -> Iterator[None]:
    with ray_session(cpus=2):
        yield


@pytest.fixture(scope="module")
def undisturbed(ray_here: None, seaweedfs: Any, arguments: list[str]) -> dict[str, str]:
    """Key and ETag, which is the MD5 of the bytes, of every shard, and every receipt's key."""
    url = f"s3://{seaweedfs.bucket}/{uuid4().hex}"
    assert main([*arguments, f"cache.url={url}"]) == 0
    return content(open_store(url))


def content(store: ObjectStore) -> dict[str, str]:
    """All that must be equal whatever happened, by content; lists of URLs and MLflow's run ids are not.

    Nor are leases: a driver that was killed leaves its own, until it runs out.
    """
    named = (info for info in store.list() if not info.key.startswith(("requests/", "leases/")))
    return {info.key: info.etag for info in named if not info.key.endswith(".shards.txt")}


def committed(store: ObjectStore) -> dict[str, str]:
    return {info.key: info.etag for info in store.list() if "/receipts/" in info.key}


def wait_for(what: Callable[[], Any]) -> Any:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        found = what()
        if found:
            return found
        time.sleep(0.02)
    raise TimeoutError(f"nothing within {PATIENCE_S} s")


def workers(parent: psutil.Process) -> list[psutil.Process]:
    """The Ray workers that compute shards, below a process."""
    return [
        each for each in parent.children(recursive=True) if name_of(each) == "ray::ShardWorker.commit_packed"
    ]


def test_a_killed_worker_costs_nothing_but_time(
    undisturbed: dict[str, str], arguments: list[str], s3_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(s3_url)
    caplog.set_level(logging.INFO)
    struck: list[int] = []

    def strike() -> None:
        wait_for(lambda: committed(store))
        victim = wait_for(lambda: workers(psutil.Process()))[0]
        victim.send_signal(signal.SIGKILL)
        struck.append(victim.pid)

    killer = threading.Thread(target=strike)
    killer.start()
    assert main([*arguments, f"cache.url={s3_url}", "cache.workers=2"]) == 0
    killer.join()
    assert struck
    assert "a worker was lost at shard" in caplog.text
    assert content(store) == undisturbed


def test_a_shard_that_always_loses_its_worker_ends_the_job(
    ray_here: None, arguments: list[str], s3_url: str
) -> None:
    done = threading.Event()

    def strike() -> None:
        while not done.wait(0.02):
            for worker in workers(psutil.Process()):
                worker.send_signal(signal.SIGKILL)

    killer = threading.Thread(target=strike)
    killer.start()
    try:
        with pytest.raises(RuntimeError, match="lost its worker 2 times"):
            main([*arguments, f"cache.url={s3_url}", "cache.attempts=2"])
    finally:
        done.set()
        killer.join()


def start_driver(arguments: list[str], url: str, log: Path) -> subprocess.Popen[bytes]:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # A shell that runs the tests in the background has them ignore Ctrl-C, and children inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.precompute", *arguments, f"cache.url={url}"],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )


def test_racing_drivers_agree(
    undisturbed: dict[str, str], arguments: list[str], s3_url: str, tmp_path: Path
) -> None:
    arguments = [*arguments, "cache.workers=4"]
    drivers = [start_driver(arguments, s3_url, tmp_path / f"{name}.log") for name in "ab"]
    assert [driver.wait(PATIENCE_S) for driver in drivers] == [0, 0]
    assert content(open_store(s3_url)) == undisturbed
    told = [(tmp_path / f"{name}.log").read_text() for name in "ab"]
    assert all("failed" in text for text in told)


def name_of(process: psutil.Process) -> str:
    """What a process runs; nothing where it has ended, be it that nobody has collected it yet."""
    try:
        return " ".join(process.cmdline()[:1])
    except psutil.NoSuchProcess:
        return ""


def assert_gone(family: list[psutil.Process], *, agents_linger: bool) -> None:
    """Ray does not outlive its driver; after SIGKILL its two idle agents notice only after a minute."""
    for process in family:
        if agents_linger and name_of(process) in {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}:
            process.kill()
    wait_for(lambda: not any(map(name_of, family)))


def test_a_stopped_driver_goes_on_where_it_was(
    undisturbed: dict[str, str],
    arguments: list[str],
    s3_url: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, standing = open_store(s3_url), dict[str, str]()
    for number, blow in enumerate((signal.SIGINT, signal.SIGKILL)):
        driver = start_driver(arguments, s3_url, tmp_path / f"{number}.log")
        wait_for(lambda: len(committed(store)) > len(standing))  # noqa: B023 - called at once
        family = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(blow)
        assert driver.wait(PATIENCE_S) == (130 if blow == signal.SIGINT else -blow)
        assert_gone(family, agents_linger=blow == signal.SIGKILL)
        before, standing = standing, committed(store)
        assert before.items() <= standing.items()
        assert len(standing) < SHARDS, "it was struck too late"
        assert not [info.key for info in store.list("requests/")]
    assert "ldznet: stopped" in (tmp_path / "0.log").read_text()
    caplog.set_level(logging.INFO)
    assert main([*arguments, f"cache.url={s3_url}"]) == 0
    assert standing.items() <= committed(store).items()
    assert content(store) == undisturbed
    assert f"in {SHARDS - len(standing)} shards with" in caplog.text  # only what was missing


def test_a_lost_raylet_is_survived_or_told_and_the_next_run_completes(
    undisturbed: dict[str, str], arguments: list[str], s3_url: str, tmp_path: Path
) -> None:
    """Its workers may outlive it and go on to the end; where they do not, the job ends and says why."""
    store = open_store(s3_url)
    driver = start_driver(arguments, s3_url, tmp_path / "driver.log")
    wait_for(lambda: committed(store))
    family = psutil.Process(driver.pid).children(recursive=True)
    (raylet,) = [each for each in family if Path(name_of(each)).name == "raylet"]
    raylet.send_signal(signal.SIGKILL)
    struck_after = len(committed(store))
    try:
        code = driver.wait(PATIENCE_S)
    finally:
        driver.kill()
        driver.wait()
        for each in family:  # a head's other processes notice only after a minute
            if name_of(each):
                each.kill()
    wait_for(lambda: not any(map(name_of, family)))
    sys.stdout.write(f"raylet lost after {struck_after} of {SHARDS} shards: the driver ended with {code}\n")
    assert struck_after < SHARDS, "it was struck too late"
    assert code != 2, "no mistake of the user's"
    if code == 0:
        assert content(store) == undisturbed
    else:
        told = (tmp_path / "driver.log").read_text().lower()
        assert "raylet" in told or "node" in told
        assert not [info.key for info in store.list("requests/")]
    standing = committed(store)
    assert main([*arguments, f"cache.url={s3_url}"]) == 0
    assert standing.items() <= committed(store).items()
    assert content(store) == undisturbed


def test_whatever_is_killed_the_bytes_are_those_of_a_run_that_was_left_alone(
    undisturbed: dict[str, str], arguments: list[str], seaweedfs: Any, tmp_path: Path, long_form: bool
) -> None:
    """Real kills of actors and drivers under Ray, seeded, each after another commit; what was killed starts again."""
    chance, wanted = random.Random(7), 20 if long_form else 2  # noqa: S311 - a test's draw
    victims = ["actor", "driver"] * (wanted // 2)
    chance.shuffle(victims)
    struck, caches, drivers = [*victims], 0, 0
    while victims:
        url = f"s3://{seaweedfs.bucket}/{uuid4().hex}"
        store, caches, code = open_store(url), caches + 1, None
        while code != 0:
            drivers += 1
            driver = start_driver([*arguments, "cache.workers=2"], url, tmp_path / f"{drivers}.log")
            code = harass(driver, store, victims, chance)
            assert code in {0, -signal.SIGKILL}, (tmp_path / f"{drivers}.log").read_text()
        assert content(store) == undisturbed
    sys.stdout.write(
        f"{struck.count('actor')} actors and {struck.count('driver')} drivers killed over {caches} caches of {SHARDS} "
        "shards: 0 lost, 0 duplicated, 0 torn\n"
    )


def harass(
    driver: "subprocess.Popen[bytes]", store: ObjectStore, victims: list[str], chance: random.Random
) -> int:
    """Kill its actors until the driver's own turn has come, or it has ended: its exit code."""
    parent, family = psutil.Process(driver.pid), set[psutil.Process]()

    def ended() -> bool:
        return driver.poll() is not None

    try:
        while victims and not ended():
            standing = len(committed(store))
            wait_for(lambda: ended() or len(committed(store)) > standing)  # noqa: B023 - called at once
            time.sleep(chance.uniform(0, 0.5))
            family |= set(parent.children(recursive=True)) if not ended() else set()
            if victims[-1] == "driver":
                driver.kill()
                if driver.wait() == -signal.SIGKILL:
                    victims.pop()
            elif at_work := [] if ended() else workers(parent):
                chance.choice(at_work).kill()
                victims.pop()
        return driver.wait(PATIENCE_S)
    finally:
        driver.kill()
        driver.wait()
        assert_gone(list(family), agents_linger=True)
