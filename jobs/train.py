"""Train a recipe's network on cached features: ranks by Ray Train, steps by DeepSpeed, the best model registered."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.entry import configure_logging, recipe_job
from jobs.local_ray import ray_session

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

logger = logging.getLogger("jobs.train")


def train(recipe: "Recipe") -> Path:
    """Train, keep the best model in the output folder, register it. Returns the model's folder."""
    from jobs.train_ranks import cluster_gpus, run_ranks
    from pipeline.models.folder import download_model
    from pipeline.training.run import TrainingRun

    run = TrainingRun(recipe)
    run.check()
    cpus = recipe.train.workers * recipe.train.threads + 1
    with run.recorded() as record, ray_session(cpus=cpus):
        fitted = recipe.model_copy(update={"train": recipe.train.fitted_to_gpus(cluster_gpus())})
        run_ranks(
            _rank,
            config={
                "recipe": fitted.model_dump(mode="json"),
                "model_url": run.model_url,
                "run_id": record.run_id,
            },
            train_config=fitted.train,
            storage=run.storage,
            name=run.name,
        )
        folder = Path(recipe.output_folder) / "models" / recipe.network.label
        facts = download_model(run.model_url, folder)
        version = record.register(folder)
    chosen = "".join(f", {name} {value:.3f}" for name, value in facts.items() if name != "step")
    logger.info("best model: step %d%s -> %s", facts["step"], chosen, folder)
    if version is not None:
        logger.info("registered as models:/%s@best, version %s", run.registered_name, version)
    return folder


def _rank(config: dict[str, Any]) -> dict[str, Any]:
    from dataclasses import asdict

    from jobs.ray_checkpoints import RayCheckpoints
    from pipeline.recipe import Recipe
    from pipeline.training.rank_training import train_on_this_rank

    configure_logging()
    outcome = train_on_this_rank(
        Recipe.model_validate(config["recipe"]),
        checkpoints=RayCheckpoints(),
        model_url=config["model_url"],
        run_id=config["run_id"],
    )
    return asdict(outcome)


main = recipe_job("train")(train)

if __name__ == "__main__":
    sys.exit(main())
