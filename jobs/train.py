"""Train a recipe's network, or a grid of them: ranks by Ray Train, steps by DeepSpeed, the best models registered."""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.cache_notes import cache_keys
from jobs.grid import TrainCommand
from jobs.job_notes import note_on_job

if TYPE_CHECKING:
    from pipeline.recipe import Recipe
    from pipeline.training.cached_sets import CachedSets

logger = logging.getLogger("jobs.train")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlaceInGrid:
    """What is different for a training that is one cell of a grid."""

    label: str  # of its model's folder
    title: str  # of its run in MLflow
    parent_run_id: str | None
    wait_minutes: float | None  # for room, in place of the recipe's own
    cached: "CachedSets | None" = None  # what all of the grid's trainings read


def train(recipe: "Recipe", *, place: PlaceInGrid | None = None) -> Path:
    """Train, unless that was done; keep the best model in the output folder, register it. Returns the model's folder.

    The model becomes its kind's `best` in the registry; of a grid's only the best does, when all are done.
    """
    from jobs.ray_training import train_on_ray
    from pipeline.training.run import BEST, TrainingRun
    from pipeline.training.starting_weights import pinned_start

    recipe = pinned_start(recipe)
    run = TrainingRun(recipe, label=place.label if place else None, cached=place.cached if place else None)
    run.check()
    recorded = run.recorded(parent_run_id=place.parent_run_id, title=place.title) if place else run.recorded()
    with run.cache_held(), recorded as record:
        if place is None:
            read = cache_keys(recipe, [recipe.train_on, recipe.validate_on])
            note_on_job({"mlflow_run.train": record.run_url, **read})
        if run.finished() is None:
            train_on_ray(recipe, run, record, wait_minutes=place.wait_minutes if place else None)
        else:
            logger.info("%s: finished before, nothing to train", run.name)
        found = run.conclude(record, alias=None if place else BEST)
    chosen = "".join(f", {name} {value:.3f}" for name, value in found.facts.items() if name != "step")
    logger.info("best model: step %d%s -> %s", found.facts["step"], chosen, run.folder)
    if found.version is not None:
        logger.info("registered as models:/%s/%s", run.registered_name, found.version)
    return run.folder


main = TrainCommand(
    name="train",
    summary=(__doc__ or "").strip(),
    job=train,
    flags={"test": "of a grid: score each model on the recipe's other sets too"},
)

if __name__ == "__main__":
    sys.exit(main())
