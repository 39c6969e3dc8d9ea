"""A real precompute job on a made-up data set, and how many samples a second it commits once it runs steadily."""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import yaml

from ldznet.miniature_ldm import MiniatureConfig, build_miniature_ldm
from pipeline.cache.receipt import read_receipt
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore
from pipeline.precompute.worker_pool import SHARDS_AT_ONCE
from tests.benchmarks.made_photos import write_photos

FIFTH = MiniatureConfig(
    block_out_channels=(64, 128, 256, 256),
    attention_heads=8,
    norm_groups=8,
    context_width=192,
    text_layers=4,
    vae_channels=(24, 48, 96, 96),
)
TINY = MiniatureConfig(
    block_out_channels=(8, 8, 16, 16),
    attention_heads=2,
    norm_groups=4,
    context_width=1024,  # wide, so that a shard of 1 MiB holds few samples
    text_layers=1,
    text_heads=2,
    vae_channels=(4, 4, 8, 8),
    vocabulary_size=600,
)
_POLL_S = 0.2  # a listing takes the store and this process some milliseconds of the two cores


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A recipe for precompute on one machine, and its parts."""

    recipe: Path
    ldm: Path
    data: Path
    samples: int
    pixels: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """A receipt that was seen to appear."""

    seconds: float  # on the monotonic clock
    samples: int


def write_job(
    folder: Path,
    *,
    quick: bool,
    photos: int,
    shard_mebibytes: int,
    features: Mapping[str, object] | None = None,
) -> Job:
    """Write photos, the frozen LDM and a recipe with one set of `shared` views; `features` as in a recipe."""
    pixels = 64 if quick else 192
    samples = write_photos(folder / "data", photos=photos)
    ldm = build_miniature_ldm(folder / "ldm", config=TINY if quick else FIFTH, phrases=["attribute noun"])
    recipe = {
        "name": "benchmark",
        "output": str(folder / "run"),
        "data": {"format": "folder", "root": str(folder / "data")},
        "ldm": {"source": str(ldm)},
        "sets": {
            "train": {
                "split": "train",
                "view": {"policy": "shared", "size": pixels},
                "timesteps": {"low": 300, "high": 500},
            }
        },
        "validate_on": None,
        "features": {"threads": 1, **(features or {})},
        "cache": {"url": str(folder / "cache"), "shard_mebibytes": shard_mebibytes},
        "tracking": {"enabled": False},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return Job(recipe=path, ldm=ldm, data=folder / "data", samples=samples, pixels=pixels)


def steady_rate(job: Job, *, place: str, workers: int) -> float:
    """Samples a second of the job on an empty cache, from the first commit on, while every worker is at work.

    Start-up, loading and the first shard are left out, and so is the end, where workers run out of shards.

    Args:
        job: what to compute.
        place: URL under which a fresh cache is made, and removed where it is a folder.
        workers: how many.
    """
    from jobs.precompute import main

    url = f"{place}/{uuid4().hex}"
    store = open_store(url)
    with _watched(store) as commits:
        code = main([str(job.recipe), f"cache.url={url}", f"cache.workers={workers}"])
    assert code == 0, f"precompute ended with {code}"
    assert sum(commit.samples for commit in commits) == job.samples
    if "://" not in place:
        shutil.rmtree(url)
    return _rate(commits, workers=workers)


def _rate(commits: Sequence[Commit], *, workers: int) -> float:
    """Between two commits at which every worker has all the shards that it takes at a time.

    The commits between are a multiple of the shards under way, so that both ends find those equally far.
    """
    under_way = workers * SHARDS_AT_ONCE
    last = (len(commits) - 1 - under_way) // under_way * under_way
    assert last > 0, f"{len(commits)} shards are too few for {workers} workers"
    samples = sum(commit.samples for commit in commits[1 : last + 1])
    return samples / (commits[last].seconds - commits[0].seconds)


@contextmanager
def _watched(store: ObjectStore) -> Iterator[list[Commit]]:
    """Receipts as they appear in the store, looked for every 0.2 s; complete after the `with`."""
    seen: dict[str, float] = {}
    commits: list[Commit] = []
    done = threading.Event()

    def look() -> None:
        last = False
        while not last:
            last = done.is_set()
            now = time.perf_counter()
            for info in store.list():
                if "/receipts/" in info.key:
                    seen.setdefault(info.key, now)
            done.wait(_POLL_S)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield commits
    finally:
        done.set()
        watcher.join()
    for key, seconds in sorted(seen.items(), key=lambda item: item[1]):
        cache_key, _, name = key.split("/")
        receipt = read_receipt(store, cache_key=cache_key, shard_id=name.removesuffix(".json"))
        assert receipt is not None
        commits.append(Commit(seconds=seconds, samples=len(receipt.samples)))


@contextmanager
def one_ray(*, workers: int) -> Iterator[None]:
    """One Ray for all runs, with its files in a folder of its own that is gone afterwards."""
    from jobs.local_ray import ray_session

    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: sockets lie in it, whose paths have a limit
    before = os.environ.get("RAY_TMPDIR")
    os.environ["RAY_TMPDIR"] = str(folder)
    try:
        with ray_session(cpus=workers):
            yield
    finally:
        if before is None:
            del os.environ["RAY_TMPDIR"]
        else:
            os.environ["RAY_TMPDIR"] = before
        shutil.rmtree(folder, ignore_errors=True)
