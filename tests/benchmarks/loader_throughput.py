"""The loader against its raw control, stock `webdataset` and LitData on one cache: for `loader_s3`, `loader_disk`."""

import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.cache.manifest import Manifest
from pipeline.object_store.files import FileStore
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore
from tests.benchmarks import litdata_peer
from tests.benchmarks.loader_cache import write_cache
from tests.benchmarks.reading_process import ReadingProcess
from tests.benchmarks.sides import ratio, spread, take_turns

OURS, RAW = "the loader", "ranges alone"
WHOLE = "whole shards, let go as they come"
STOCK, STOCK_BATCHES = "webdataset", "webdataset, same batches"
LITDATA, LITDATA_RAW = "LitData, same batches", "LitData, masks as raw tensors"
LITDATA_WORKERS = 0  # processes
_PROGRAMS = {OURS: "ours", RAW: "raw", STOCK: "webdataset", STOCK_BATCHES: "webdataset_batches"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Throughput:
    """What was measured; a list has a figure for each round."""

    speed: dict[str, list[float]]  # side -> MB/s of the samples' bytes in the shards
    cpu: dict[str, list[float]]  # side -> CPU seconds a GB
    peer_missing: str  # why there is no LitData among the sides

    def ratio(self, other: str) -> float:
        """The loader's speed over another side's."""
        return ratio(self.speed, OURS, other)

    def extra_cpu(self) -> float:
        """CPU seconds a GB beyond those of the ranges alone."""
        return median(self.cpu[OURS]) - median(self.cpu[RAW])

    def sides(self, *labels: str) -> dict[str, list[float]]:
        """The speed of the loader and of these."""
        return {label: self.speed[label] for label in (OURS, *labels)}

    def details(self, other: str) -> dict[str, Any]:
        """What else there is to say of the loader beside another side."""
        return {
            "ratio of single rounds": spread(self.speed, OURS, other),
            "CPU seconds a GB": {label: round(median(self.cpu[label]), 3) for label in (OURS, other)},
        }


def measure(url: str, folder: Path, *, samples: int, rounds: int, with_peer: bool) -> Throughput:
    """All sides in turns, each in a process of its own.

    Args:
        url: of an empty store.
        folder: for what is made on the way.
        samples: of the cache.
        rounds: figures a side, after a round that does not count.
        with_peer: whether LitData is a side; it is left out, too, where it cannot be installed.
    """
    (folder / "made").mkdir()
    store = open_store(url)
    manifest = write_cache(store, folder / "made", samples=samples, per_shard=min(samples, 160))
    arguments = (store.url, manifest.cache_key, manifest.manifest_id)
    commands: dict[str, Sequence[str | Path]] = {
        label: [sys.executable, "-m", "tests.benchmarks.reading_sides", program, *arguments]
        for label, program in _PROGRAMS.items()
    }
    peer_missing = "left out"
    if with_peer:
        try:
            commands[LITDATA] = _litdata(store, manifest, folder)
            if isinstance(store, FileStore):
                commands[LITDATA_RAW] = _litdata(store, manifest, folder, "--raw-masks")
            peer_missing = ""
        except litdata_peer.PeerMissingError as error:
            peer_missing = str(error)
            print(f"without LitData: {error}")  # noqa: T201 - who runs it is to know
    if not isinstance(store, FileStore):
        commands[WHOLE] = [sys.executable, "-m", "tests.benchmarks.reading_sides", "whole", *arguments]
    with ExitStack() as stack:
        processes = {
            label: stack.enter_context(ReadingProcess(command, log=folder / f"{number}.log"))
            for number, (label, command) in enumerate(commands.items())
        }
        size = manifest.size / 1e6
        sides = {label: _speed(process, size) for label, process in processes.items()}
        speed = take_turns(sides, rounds=rounds)
        cpu = {
            label: [one["cpu_s"] / size * 1e3 for one in process.figures[-rounds:]]
            for label, process in processes.items()
        }
    return Throughput(speed=speed, cpu=cpu, peer_missing=peer_missing)


def _speed(process: ReadingProcess, megabytes: float) -> Callable[[], float]:
    return lambda: megabytes / process.measure()["seconds"]


def _litdata(store: ObjectStore, manifest: Manifest, folder: Path, *options: str) -> list[str | Path]:
    """The command of LitData's side, its data set in the same store."""
    python = litdata_peer.peer_python()
    name = "".join(["litdata", *options])
    if isinstance(store, FileStore):
        shards = store.path(manifest.shards[0].object_key).parent
        litdata_peer.prepare(python, shards, folder / name, *options)
        place = str(folder / name)
    else:
        shards, made = folder / "shards", folder / name
        shards.mkdir()
        for shard in manifest.shards:
            (shards / f"{shard.shard_id}.tar").write_bytes(store.get(shard.object_key))
        litdata_peer.prepare(python, shards, made, *options)
        for path in made.iterdir():
            store.put(f"{name}/{path.name}", path)
        shutil.rmtree(shards)
        shutil.rmtree(made)
        place = f"{store.url}/{name}"
    command = [python, litdata_peer.PROGRAM, "read", place, folder / "downloads", str(manifest.samples)]
    return [*command, str(LITDATA_WORKERS), *options]
