"""Memory of the loader over three epochs: of a rank's process, and of a worker process of its own.

python -m tests.benchmarks.loader_memory
"""

import sys
from collections.abc import Sequence
from statistics import median

from pipeline.object_store.opening import open_store
from tests.benchmarks.arguments import read_arguments
from tests.benchmarks.loader_cache import write_cache
from tests.benchmarks.reading_process import ReadingProcess
from tests.benchmarks.record import write_record
from tests.benchmarks.s3_server import s3_server
from tests.benchmarks.temporary import memory_folder

EPOCHS = 3


def main(argv: Sequence[str] | None = None) -> None:
    arguments = read_arguments(__doc__, argv, rounds=5)
    samples = 48 if arguments.quick else 640
    figures: dict[str, list[float]] = {}
    with memory_folder() as folder, s3_server(folder) as bucket:
        store = open_store(f"s3://{bucket}/cache")
        manifest = write_cache(store, folder, samples=samples, per_shard=min(samples, 160))
        for _ in range(arguments.rounds):
            for side, whose, label in (
                ("ours", "process", "a rank's process"),
                ("ours_worker", "worker", "a worker process"),
            ):
                command = [sys.executable, "-m", "tests.benchmarks.reading_sides", side]
                command += [store.url, manifest.cache_key, manifest.manifest_id]
                with ReadingProcess(command, log=folder / "side.log") as process:
                    for epoch in range(1, EPOCHS + 1):
                        resident = process.measure()["resident"][whose]
                        figures.setdefault(f"{label}, after epoch {epoch}", []).append(resident)
    medians = {label: median(values) for label, values in figures.items()}
    growth = max(
        medians[f"{label}, after epoch {EPOCHS}"] / medians[f"{label}, after epoch 1"]
        for label in ("a rank's process", "a worker process")
    )
    write_record(
        name="loader_memory",
        value=growth,
        unit="x after three epochs",
        better="lower",
        target=1.05,
        sides=figures,
        sides_unit="MB resident",
        command="python -m tests.benchmarks.loader_memory",
        about=(
            f"{samples} samples of 1.57 MB from SeaweedFS, batches of 32 (50 MB), 4 batches ahead, 8 requests in "
            "flight; each round a fresh process. What a process has in memory besides is Python and torch. The value: "
            "growth from the first epoch's end to the third's, of whichever grows more."
        ),
        threads=1,
        folder=arguments.folder,
    )


if __name__ == "__main__":
    main()
