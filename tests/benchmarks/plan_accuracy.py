"""`ldznet plan` against a real precompute with one worker: samples, shards, bytes, and seconds a sample.

python -m tests.benchmarks.plan_accuracy
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from pipeline.cache.manifest import find_manifest
from pipeline.object_store.opening import open_store
from pipeline.planning.cost_plan import CostPlan, make_cost_plan
from pipeline.recipe_file import load_recipe
from tests.benchmarks.arguments import read_arguments
from tests.benchmarks.real_precompute import Job, one_ray, steady_rate, write_job
from tests.benchmarks.record import write_record
from tests.benchmarks.sides import spread, take_turns
from tests.benchmarks.temporary import memory_folder

PLANNED, MEASURED = "planned", "measured"


def main(argv: Sequence[str] | None = None) -> None:
    arguments = read_arguments(__doc__, argv)
    seconds = 2.0 if arguments.quick else 15.0
    with memory_folder() as folder, one_ray(workers=1):
        job = write_job(
            folder,
            quick=arguments.quick,
            photos=14 if arguments.quick else 80,
            shard_mebibytes=1 if arguments.quick else 4,
        )
        counted = _counts_planned(_plan(job, folder, seconds=seconds))
        real = _counts_of_a_run(job, folder)
        sides = {
            PLANNED: lambda: _plan(job, folder, seconds=seconds).worker_times[0].seconds / job.samples,
            MEASURED: lambda: 1 / steady_rate(job, place=str(folder / "caches"), workers=1),
        }
        figures = take_turns(sides, rounds=arguments.rounds, warm_ups=0)
    errors = {name: abs(counted[name] / real[name] - 1) for name in real}
    errors["seconds a sample"] = abs(median(figures[PLANNED]) / median(figures[MEASURED]) - 1)
    write_record(
        name="plan_accuracy",
        value=max(errors.values()),
        unit="worst relative error",
        better="lower",
        target=0.25,
        sides=figures,
        sides_unit="s a sample",
        command="python -m tests.benchmarks.plan_accuracy",
        about=(
            f"`ldznet plan` of {job.samples} samples with `shared` views of {job.pixels} px, calibrated for "
            f"{seconds:g} s, against a real `precompute` with one Ray worker: SD's topology at a fifth of its widths, "
            "random weights, fp32, one thread. Seconds are those between commits; start-up and loading are left out. "
            "The value is the worst of the relative errors of samples, shards, bytes and seconds."
        ),
        details={
            "relative error": {name: round(error, 4) for name, error in errors.items()},
            "planned": counted,
            "real": real,
            "planned to measured seconds, single rounds": spread(figures, PLANNED, MEASURED),
        },
        threads=1,
        folder=arguments.folder,
    )


def _plan(job: Job, folder: Path, *, seconds: float) -> CostPlan:
    """The plan for an empty cache; a training step is not timed."""
    url = str(folder / "none")
    recipe = load_recipe(job.recipe, [f"cache.url={url}", "plan.samples_per_second=1", "plan.workers=[1]"])
    return make_cost_plan(recipe, store=open_store(url), seconds=seconds)


def _counts_planned(plan: CostPlan) -> dict[str, int]:
    (one,) = plan.sets
    return {"samples": one.samples, "shards": one.shards, "bytes": one.bytes}


def _counts_of_a_run(job: Job, folder: Path) -> dict[str, int]:
    from jobs.precompute import main as precompute

    url = str(folder / "whole")
    assert precompute([str(job.recipe), f"cache.url={url}"]) == 0
    manifest = find_manifest(open_store(url), load_recipe(job.recipe).request_digest("train"))
    assert manifest is not None
    return {"samples": manifest.samples, "shards": len(manifest.shards), "bytes": manifest.size}


if __name__ == "__main__":
    main()
