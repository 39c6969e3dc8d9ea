"""Time to the first batch: cold, and resumed at half and at 99 % of an epoch.

python -m tests.benchmarks.loader_first_batch
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from pipeline.cache.manifest import Manifest, committed_shards, write_manifest
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore
from tests.benchmarks.arguments import read_arguments
from tests.benchmarks.loader_cache import SPEC, write_cache
from tests.benchmarks.record import write_record
from tests.benchmarks.s3_server import s3_server
from tests.benchmarks.sides import spread, take_turns
from tests.benchmarks.temporary import memory_folder

COLD, SHARES = "from the start", {"from the start": 0.0, "at 50 %": 0.5, "at 99 %": 0.99}
PER_SHARD = 160


def main(argv: Sequence[str] | None = None) -> None:
    arguments = read_arguments(__doc__, argv, rounds=7)
    distinct, samples = (8, 4_000) if arguments.quick else (PER_SHARD, 340_000)
    with memory_folder() as folder, s3_server(folder) as bucket:
        store = open_store(f"s3://{bucket}/cache")
        manifest = _repeated(store, folder, distinct=distinct, samples=samples)
        sides = {label: _first_batch(store, manifest, share) for label, share in SHARES.items()}
        figures = take_turns(sides, rounds=arguments.rounds)
    slowest = max(figures, key=lambda label: median(figures[label]))
    write_record(
        name="loader_first_batch",
        value=median(figures[slowest]) / median(figures[COLD]),
        unit="x of a cold start",
        better="lower",
        target=1.2,
        sides=figures,
        sides_unit="s",
        command="python -m tests.benchmarks.loader_first_batch",
        about=(
            f"A manifest of {manifest.samples:,} samples in {len(manifest.shards):,} shards (PhraseCut's size; the "
            f"samples are {distinct} of 1.57 MB over and over) on SeaweedFS; each figure is a fresh process's, from "
            "opening the store (manifest, index, order of the epoch) to the first batch of 32, imports left out. "
            "The value is the slowest position's time over the start's."
        ),
        details={f"{label}: ratio of single rounds": spread(figures, label, COLD) for label in figures},
        threads=1,
        folder=arguments.folder,
    )


def _repeated(store: ObjectStore, folder: Path, *, distinct: int, samples: int) -> Manifest:
    """A manifest that names the same shard again and again."""
    manifest = write_cache(store, folder, samples=distinct, per_shard=distinct)
    (shard,) = committed_shards(store, manifest)
    shards = [replace(shard, rows=shard.rows.copy()) for _ in range(samples // distinct)]
    return write_manifest(store, spec=SPEC, dataset="made", split="repeated", shards=shards)


def _first_batch(store: ObjectStore, manifest: Manifest, share: float) -> Callable[[], float]:
    command = [sys.executable, "-m", "tests.benchmarks.first_batch_side"]
    command += [store.url, manifest.cache_key, manifest.manifest_id, str(share)]
    root = Path(__file__).parents[2]
    return lambda: float(
        subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout.split()[-1]
    )


if __name__ == "__main__":
    main()
