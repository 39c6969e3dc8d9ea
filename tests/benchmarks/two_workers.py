"""Two precompute workers against one, one thread each: real jobs on Ray, steady samples a second.

python -m tests.benchmarks.two_workers
"""

import os
from collections.abc import Sequence

from tests.benchmarks.arguments import read_arguments
from tests.benchmarks.real_precompute import one_ray, steady_rate, write_job
from tests.benchmarks.record import write_record
from tests.benchmarks.sides import ratio, spread, take_turns
from tests.benchmarks.temporary import memory_folder

ONE, TWO = "1 worker", "2 workers"


def main(argv: Sequence[str] | None = None) -> None:
    arguments = read_arguments(__doc__, argv)
    cores = len(os.sched_getaffinity(0))
    photos = 14 if arguments.quick else 80
    with memory_folder() as folder, one_ray(workers=2):
        job = write_job(
            folder, quick=arguments.quick, photos=photos, shard_mebibytes=1 if arguments.quick else 3
        )
        sides = {
            label: lambda count=count: steady_rate(job, place=str(folder / "caches"), workers=count)
            for label, count in ((ONE, 1), (TWO, 2))
        }
        figures = take_turns(sides, rounds=arguments.rounds, warm_ups=0)
    write_record(
        name="two_workers",
        value=ratio(figures, TWO, ONE),
        unit="x one worker",
        better="higher",
        target=1.7,
        sides=figures,
        sides_unit="samples/s",
        command="python -m tests.benchmarks.two_workers",
        about=(
            f"`precompute` on Ray of {job.samples} samples on {photos} photos with `shared` views of {job.pixels} px: "
            "SD's topology at a fifth of its widths, random weights, fp32, one thread a worker for the networks, the "
            "cache a folder in memory. Rates are those between commits while all workers are busy: start-up and "
            "loading are left out."
        ),
        note="" if cores >= 2 else "This machine has one core.",
        details={"ratio of single rounds": spread(figures, TWO, ONE)},
        threads=1,
        folder=arguments.folder,
    )


if __name__ == "__main__":
    main()
