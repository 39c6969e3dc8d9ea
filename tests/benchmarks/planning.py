"""Planning: ten million samples into shards, and a resume over a hundred thousand finished ones; each run a process.

python -m tests.benchmarks.planning
"""

import hashlib
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.cache import layout
from pipeline.cache.member_table import MemberTable
from pipeline.cache.spec import CacheSpec, FeaturesConfig, PolicyConfig
from pipeline.datasets.masks import PolygonMask
from pipeline.datasets.sample import Sample
from pipeline.object_store.store import ObjectInfo
from pipeline.precompute.increment import committed_ids, plan_increment
from tests.benchmarks.arguments import Arguments, read_arguments
from tests.benchmarks.made_photos import PHRASES_A_PHOTO
from tests.benchmarks.record import write_record

_ROOT = Path(__file__).parents[2]
_CHILD = "--child"
PER_SHARD = 100
PAGE = 1000  # keys a LIST, as on S3
FINISHED = 0.95  # of the shards, in the resume
ABOUT = (
    "{samples:,} samples with PhraseCut's polygon masks, 4.3 a photo, as a reader yields them, their photos' digests "
    "known: members listed, identities hashed, shards of {per_shard} cut; in a fresh process."
)


def main(argv: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == [_CHILD]:
        print(json.dumps(_plan(int(given[1]))))  # noqa: T201 - what the parent reads
        return
    arguments = read_arguments(__doc__, given, rounds=3)  # each takes two minutes
    samples = 2_000 if arguments.quick else 10_000_000
    runs = [_in_a_process(samples) for _ in range(arguments.rounds)]
    _record_plan(arguments, samples, runs)
    _record_resume(arguments, samples, runs)


def _record_plan(arguments: Arguments, samples: int, runs: Sequence[Mapping[str, float]]) -> None:
    about = ABOUT.format(samples=samples, per_shard=PER_SHARD)
    command = "python -m tests.benchmarks.planning"
    seconds = [run["list_s"] + run["plan_s"] for run in runs]
    write_record(
        name="planning_time",
        value=_median(seconds),
        unit="s",
        better="lower",
        target=120,
        sides={
            "listed and planned": seconds,
            "of it listed": [run["list_s"] for run in runs],
            "of it cut into shards": [run["plan_s"] for run in runs],
            "beside it: samples made up": [run["make_s"] for run in runs],
        },
        sides_unit="s",
        command=command,
        about=f"{about} The time to make the samples up, which stands in for a reader's, is taken off.",
        folder=arguments.folder,
    )
    write_record(
        name="planning_memory",
        value=_median([run["peak_gb"] for run in runs]),
        unit="GB",
        better="lower",
        target=2,
        sides={"peak resident memory": [run["peak_gb"] for run in runs]},
        sides_unit="GB",
        command=command,
        about=f"{about} The greatest resident set of the whole process, libraries included.",
        folder=arguments.folder,
    )


def _record_resume(arguments: Arguments, samples: int, runs: Sequence[Mapping[str, float]]) -> None:
    last = runs[-1]
    write_record(
        name="resume",
        value=max(run["receipts"] for run in runs),
        unit="receipts fetched",
        better="lower",
        target=0,
        sides={"resume planned": [run["resume_s"] for run in runs]},
        sides_unit="s",
        command="python -m tests.benchmarks.planning",
        about=(
            f"A resume that finds {last['finished']:,.0f} of {last['shards']:,.0f} shards finished, over a store that "
            f"counts requests and lists {PAGE} keys a page: {samples:,} members already listed, shards cut, those "
            "without a receipt found."
        ),
        details={
            "LIST requests": last["lists"],
            "pages that the receipts fill": -(-last["finished"] // PAGE),
            "GET requests": last["gets"],
        },
        folder=arguments.folder,
    )


def _in_a_process(samples: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.planning", _CHILD, str(samples)]
    done = subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _plan(samples: int) -> dict[str, float]:
    """In the child: list and plan on an empty cache, then on one that has most shards."""
    spec = CacheSpec(ldm_digest="0" * 64, features=FeaturesConfig(), policy=PolicyConfig())
    made = _Timed(_samples(samples))
    start = time.perf_counter()
    with MemberTable.from_samples(made, draws=1, digest=_digest) as table:
        list_s = time.perf_counter() - start - made.seconds
        start = time.perf_counter()
        empty: Any = _Store([])
        shards = plan_increment(table, spec=spec, samples_per_shard=PER_SHARD, store=empty).fresh
        plan_s = time.perf_counter() - start
        peak_gb = _peak_bytes() / 1e9
        finished = [one.shard.shard_id for one in shards][: int(len(shards) * FINISHED)]
        store = _Store([layout.receipt_key(spec.key, shard_id) for shard_id in finished])
        start = time.perf_counter()
        again = plan_increment(table, spec=spec, samples_per_shard=PER_SHARD, store=store)  # type: ignore[arg-type]
        committed = committed_ids(store, spec)  # type: ignore[arg-type]
        missing = [one for one in again.work if one.shard.shard_id not in committed]
        resume_s = time.perf_counter() - start
    assert len(missing) == len(shards) - len(finished)
    return {
        "make_s": made.seconds,
        "list_s": list_s,
        "plan_s": plan_s,
        "resume_s": resume_s,
        "peak_gb": peak_gb,
        "shards": len(shards),
        "finished": len(finished),
        "lists": store.requests["list"],
        "gets": store.requests["get"],
        "receipts": store.requests["receipt"],
    }


class _Store:
    """Names of objects, listed page by page; every request is counted."""

    url = "memory://benchmark"

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = sorted(keys)
        self.requests: Counter[str] = Counter()

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        found = [key for key in self._keys if key.startswith(prefix)]
        for start in range(0, max(1, len(found)), PAGE):
            self.requests["list"] += 1
            for key in found[start : start + PAGE]:
                yield ObjectInfo(key=key, size=10_000, etag="e", modified=0.0)

    def get(self, key: str, **_: object) -> bytes:
        self.requests["get"] += 1
        self.requests["receipt"] += "/receipts/" in key
        raise KeyError(key)


def _samples(count: int) -> Iterator[Sample]:
    photo = left = 0
    points = bytes(16 * 20)
    for number in range(count):
        if not left:
            photo += 1
            left = PHRASES_A_PHOTO[photo % len(PHRASES_A_PHOTO)]
        left -= 1
        yield Sample(
            image_id=str(photo),
            label_id=str(number),
            image=f"images/{photo}.jpg",
            phrase=f"phrase number {number}",
            mask=PolygonMask(points=points, lengths=(20,)),
            split="train",
        )


class _Timed:
    """An iterator that adds up the time its items take to be made."""

    def __init__(self, samples: Iterator[Sample]) -> None:
        self._samples = samples
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Sample]:
        return self

    def __next__(self) -> Sample:
        start = time.perf_counter()
        try:
            return next(self._samples)
        finally:
            self.seconds += time.perf_counter() - start


def _peak_bytes() -> int:
    """Of this process alone: Linux's `ru_maxrss` would begin with that of the process that started it."""
    described = Path("/proc/self/status")
    if described.is_file():
        for line in described.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _digest(key: str) -> str:
    """Stands in for the look-up of a remembered digest."""
    return hashlib.sha256(key.encode()).hexdigest()


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()
