"""Processes that share a local cache: they race, and are killed, and it stays sound and below its limit."""

import contextlib
import fcntl
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.long  # `make test-cluster`

ROOT = Path(__file__).resolve().parents[2]

WRITER = """
import sys
from pathlib import Path
import numpy as np, xxhash
from pipeline.cache.committed_shard import ShardReference
from pipeline.cache.index import INDEX_DTYPE
from pipeline.loading.local_cache import LocalCache

folder, limit, first, count, size = Path(sys.argv[1]), *map(int, sys.argv[2:])
shard = ShardReference(shard_id="", object_key="a", sha256="b", size=0, samples=0)
cache = LocalCache(folder, limit=limit, opened=float("inf"))
print("ready", flush=True)
for number in range(first, first + count):
    row = np.zeros(1, INDEX_DTYPE)[0]
    body = memoryview(bytes([number % 251]) * size)
    row["offset"], row["size"], row["xxh3"] = number, size, xxhash.xxh3_64_intdigest(body)
    cache.write(shard, row, body)
    found = cache.read(shard, row)
    assert found is None or found == body
"""


def files(folder: Path) -> list[Path]:
    return [path for path in (folder / "samples").rglob("*") if path.is_file()]


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in [*files(folder), *(folder / "incoming").iterdir()])


@pytest.fixture
def writers(tmp_path: Path) -> Iterator[object]:
    """Starts processes that write into one folder; they are gone afterwards."""
    started: list[subprocess.Popen[str]] = []

    def start(limit: int, *, first: int, count: int, size: int) -> subprocess.Popen[str]:
        arguments = [str(tmp_path / "cache"), *map(str, (limit, first, count, size))]
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_processes_that_race_stay_below_the_limit(writers: object, tmp_path: Path) -> None:
    limit, size = 400_000, 9_000
    racing = [writers(limit, first=first, count=300, size=size) for first in (0, 150)]  # type: ignore[operator]
    highest = 0
    while any(process.poll() is None for process in racing):
        highest = max(highest, _total(tmp_path / "cache"))
        time.sleep(0.002)
    assert [process.returncode for process in racing] == [0, 0]
    assert highest <= limit + 2 * size  # a file may be seen under both its names
    assert limit / 2 < on_disk(tmp_path / "cache")
    assert on_disk(tmp_path / "cache") <= limit
    assert not list((tmp_path / "cache" / "incoming").iterdir())
    for path in files(tmp_path / "cache"):
        body = path.read_bytes()
        assert len(body) == size
        assert len(set(body)) == 1


def _total(folder: Path) -> int:
    """Bytes that are there, while nobody may add or remove any."""
    if not (folder / "usage").is_file():
        return 0
    with (folder / "usage").open("rb") as usage:
        fcntl.flock(usage, fcntl.LOCK_EX)
        total = 0
        for path in [*folder.glob("incoming/*"), *folder.glob("samples/*/*")]:
            with contextlib.suppress(FileNotFoundError):  # finished, and so renamed
                total += path.stat().st_size
        return total


def test_processes_killed_mid_write_leave_a_sound_cache(writers: object, tmp_path: Path) -> None:
    limit, size = 60_000_000, 6_000_000
    for number in range(4):
        process = writers(limit, first=1000 * number, count=1000, size=size)  # type: ignore[operator]
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.01 + 0.03 * number)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path in files(tmp_path / "cache"):
            body = path.read_bytes()
            assert len(body) == size
            assert len(set(body)) == 1
        assert on_disk(tmp_path / "cache") <= limit
    last = writers(limit, first=0, count=40, size=size)  # type: ignore[operator]
    assert last.wait() == 0
    assert not list((tmp_path / "cache" / "incoming").iterdir())  # those of the dead are gone
    assert limit - 2 * size < on_disk(tmp_path / "cache") <= limit
