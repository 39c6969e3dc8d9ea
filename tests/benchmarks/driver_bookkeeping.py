"""What a shard costs the driver of a precompute: actors that compute nothing, and only send back what was committed.

python -m tests.benchmarks.driver_bookkeeping
"""

import hashlib
import pickle
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np

from jobs.progress import describe
from pipeline.cache import layout
from pipeline.cache.committed_shard import CommittedShard
from pipeline.cache.manifest import write_manifest
from pipeline.cache.member_table import MemberTable
from pipeline.cache.plan import plan_shards
from pipeline.cache.receipt import Environment, Receipt, SampleSpan
from pipeline.cache.spec import CacheSpec, FeaturesConfig, PolicyConfig
from pipeline.datasets.masks import PolygonMask
from pipeline.datasets.opening import DataConfig
from pipeline.datasets.sample import Sample
from pipeline.object_store.opening import open_store
from pipeline.precompute.bookkeeping import collect, tasks_of
from pipeline.precompute.dispatch import Dispatch
from pipeline.precompute.increment import PlannedWork
from pipeline.precompute.progress import Progress, Snapshot
from pipeline.precompute.sets import ListedSet
from pipeline.precompute.watch import WorkerState
from pipeline.precompute.worker import ShardTask, WorkerSetup
from pipeline.recipe import Recipe
from tests.benchmarks.arguments import read_arguments
from tests.benchmarks.real_precompute import one_ray
from tests.benchmarks.record import write_record
from tests.benchmarks.sides import take_turns
from tests.benchmarks.temporary import memory_folder

PER_SHARD = 150  # 256 MiB of samples of 1.7 MB: PhraseCut at 384 px
WORKERS = 3
SPEC = CacheSpec(
    ldm_digest="a" * 64,
    features=FeaturesConfig(),
    policy=PolicyConfig.model_validate({"view": {"policy": "squash", "size": 384}}),
)
ACTORS, DRIVER = "with Ray actors", "driver alone"


class EmptyWorker:
    """A `ShardWorker` that sends back what a shard of so many samples would be, at once."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._shard = made_shard()

    def commit_packed(self, task: bytes) -> bytes:
        """The shard, as if it had been computed."""
        return pickle.dumps(renamed(self._shard, pickle.loads(task)), protocol=5)

    def state(self) -> WorkerState:
        """Idle, always."""
        return WorkerState(worker="nobody")


def renamed(shard: CommittedShard, task: ShardTask) -> CommittedShard:
    """The same shard, as if it were that of a task."""
    shard_id = task.plan.shard_id
    key = layout.shard_key(task.of.cache_key, shard_id, "0" * 64)
    return replace(
        shard, reference=shard.reference.model_copy(update={"shard_id": shard_id, "object_key": key})
    )


def made_shard() -> CommittedShard:
    """A shard of `PER_SHARD` samples."""
    spans = [
        SampleSpan(
            key=_digest(f"sample {number}")[:32], offset=number << 21, size=1_700_000, xxh3="0" * 15 + "f"
        )
        for number in range(PER_SHARD)
    ]
    versions = dict.fromkeys(
        ("torch", "diffusers", "transformers", "numpy", "pillow", "safetensors"), "1.2.3"
    )
    receipt = Receipt(
        shard_id="0" * 32,
        object_key=layout.shard_key(SPEC.key, "0" * 32, "0" * 64),
        sha256="0" * 64,
        size=PER_SHARD * 1_700_000,
        samples=tuple(spans),
        left_out=(),
        environment=Environment(device="cuda", processor="made up", versions=versions),
    )
    return CommittedShard.from_receipts(receipt)


@dataclass(frozen=True, kw_only=True)
class Work:
    """A recipe, and the shards of its one set."""

    recipe: Recipe
    listed: ListedSet
    planned: Sequence[PlannedWork]


def make_work(folder: Path, *, shards: int) -> Work:
    """So many shards of samples with polygon masks."""
    data = DataConfig(format="folder", root=str(folder))
    table = MemberTable.from_samples(_samples(shards * PER_SHARD), draws=1, digest=_digest, folder=folder)
    cut = plan_shards(table, spec_key=SPEC.key, samples_per_shard=PER_SHARD)
    content = {
        "name": "bookkeeping",
        "output": str(folder / "run"),
        "data": data.model_dump(),
        "ldm": {"source": str(folder)},
        "sets": {"train": {"split": "train", "view": {"policy": "squash", "size": 384}}},
        "validate_on": None,
        "cache": {"url": str(folder / "cache"), "workers": WORKERS, "cpus_per_worker": 0.1},
    }
    listed = ListedSet(
        set_name="train", data=data, dataset="made up", split="train", spec=SPEC, table=table, sample_bytes=1
    )
    planned = [PlannedWork(spec=SPEC, shard=shard) for shard in cut]
    return Work(recipe=Recipe.model_validate(content), listed=listed, planned=planned)


def _samples(count: int) -> Iterator[Sample]:
    points = np.linspace(0, 383, 24).astype("<f8").tobytes()
    for number in range(count):
        yield Sample(
            image_id=str(number // 4),
            label_id=str(number),
            image=f"images/{number // 4}.jpg",
            phrase=f"the red box at the left of number {number}",
            mask=PolygonMask(points=points, lengths=(12,)),
            split="train",
        )


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def with_actors(work: Work, folder: Path) -> float:
    """Shards a second, through real Ray actors, from the first one committed to the manifest."""
    from pipeline.precompute import worker_pool

    pairs, first = [(work.listed, one) for one in work.planned], 0.0

    def committed() -> Iterator[tuple[ShardTask, CommittedShard]]:
        nonlocal first
        for task, shard in worker_pool.run_shards(
            tasks_of(pairs),
            shards=len(pairs),
            setup=setup,
            config=work.recipe.cache,
            progress=progress,
        ):
            first = first or time.perf_counter()
            yield task, shard

    progress = watched(len(pairs))
    setup = WorkerSetup(
        ldm_source="none", ldm_digest=SPEC.ldm_digest, features=SPEC.features, cache_url=work.recipe.cache.url
    )
    with patch.object(worker_pool, "ShardWorker", EmptyWorker):
        shards = collect(work.recipe, [work.listed], committed())
    write_index(work, list(shards.values()), folder)
    return (len(pairs) - 1) / (time.perf_counter() - first)


def look(snapshot: Snapshot) -> None:
    """As the job's own log does."""
    describe(snapshot)


def watched(shards: int) -> Progress:
    """Progress that somebody looks at."""
    progress = Progress(shards=shards, members=shards * PER_SHARD)
    progress.listen(look)
    return progress


def driver_alone(work: Work, folder: Path) -> float:
    """Shards a second of the driver's own part: all but what Ray does between driver and actors."""
    pickled, progress = pickle.dumps(made_shard()), watched(len(work.planned))
    started = time.perf_counter()
    pairs = [(work.listed, one) for one in work.planned]
    dispatch = Dispatch[int](tasks_of(pairs), shards=len(pairs), workers=WORKERS, attempts=1)

    def committed() -> Iterator[tuple[ShardTask, CommittedShard]]:
        running: deque[tuple[int, ShardTask]] = deque()
        for worker in range(WORKERS):
            dispatch.joined(worker)
        while dispatch.unfinished:
            while given := dispatch.give():
                given[1].pack()
                running.append(given)
            worker, task = running.popleft()
            shard = renamed(pickle.loads(pickled), task)
            dispatch.done(worker, task)
            progress.shard_committed(shard, members=len(task.plan))
            yield task, shard

    shards = collect(work.recipe, [work.listed], committed())
    write_index(work, list(shards.values()), folder)
    return len(pairs) / (time.perf_counter() - started)


def write_index(work: Work, shards: Sequence[CommittedShard], folder: Path) -> None:
    """The manifest and its index, into a folder in memory."""
    store = open_store(folder / f"{time.monotonic_ns()}")
    write_manifest(store, spec=SPEC, dataset="made up", split="train", shards=shards)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = read_arguments(__doc__, argv, rounds=3)
    shards = 60 if arguments.quick else 4000
    with memory_folder() as folder, one_ray(workers=WORKERS):
        work = make_work(folder, shards=shards)
        each = held_bytes(work)
        cpu: dict[str, list[float]] = {ACTORS: [], DRIVER: []}
        sides = {
            ACTORS: lambda: counted(cpu[ACTORS], with_actors, work, folder),
            DRIVER: lambda: counted(cpu[DRIVER], driver_alone, work, folder),
        }
        figures = take_turns(sides, rounds=arguments.rounds, warm_ups=0)
    write_record(
        name="driver_bookkeeping",
        value=median(figures[ACTORS]),
        unit="shards/s",
        better="higher",
        target=1000,
        sides=figures,
        sides_unit="shards/s",
        command="python -m tests.benchmarks.driver_bookkeeping",
        about=(
            f"{shards} shards of {PER_SHARD} samples: tasks packed and sent, what was committed received, progress, "
            f"failures, and the manifest with its index, on real Ray with {WORKERS} actors on the same machine, that "
            "compute nothing, from the first shard that comes back. Beside it the driver's own part, without Ray."
        ),
        details={
            "driver's CPU time a shard, ms": {label: round(median(one), 2) for label, one in cpu.items()},
            "driver's memory a shard, bytes": round(each),
        },
        folder=arguments.folder,
    )


def held_bytes(work: Work) -> float:
    """Memory that the driver keeps of a shard that is committed."""
    pickled = pickle.dumps(made_shard())
    tracemalloc.start()
    try:
        held = [renamed(pickle.loads(pickled), task) for task in _some(work)]
        return tracemalloc.get_traced_memory()[0] / len(held)
    finally:
        tracemalloc.stop()


def counted(cpu_ms: list[float], run: Callable[[Work, Path], float], work: Work, folder: Path) -> float:
    """A run's figure; the CPU time of this process a shard goes into the list."""
    before = time.process_time()
    figure = run(work, folder)
    cpu_ms.append(1000 * (time.process_time() - before) / len(work.planned))
    return figure


def _some(work: Work) -> Iterator[ShardTask]:
    for number, task in enumerate(tasks_of([(work.listed, one) for one in work.planned])):
        if number == 1000:
            return
        yield task


if __name__ == "__main__":
    main()
