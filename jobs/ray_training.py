"""One training on Ray: what its driver hands to the ranks, and what each rank does with it."""

from typing import TYPE_CHECKING, Any

from jobs.entry import configure_logging
from jobs.local_ray import ray_session

if TYPE_CHECKING:
    from pipeline.recipe import Recipe
    from pipeline.training.run import RunRecord, TrainingRun


def train_on_ray(
    recipe: "Recipe", run: "TrainingRun", record: "RunRecord", *, wait_minutes: float | None = None
) -> None:
    """Train to the end, from the last checkpoint if there is one. The best model is at the run's `model_url` then.

    Args:
        recipe: of the training.
        run: its names and places.
        record: its run in MLflow.
        wait_minutes: for room, in place of the recipe's own.
    """
    from jobs.train_ranks import cluster_gpus, run_ranks

    with ray_session(cpus=recipe.train.max_workers * recipe.train.threads + 1):
        config = recipe.train.fitted_to_gpus(cluster_gpus())
        content = recipe.model_copy(update={"train": config}).model_dump(mode="json")
        if wait_minutes is not None:
            cluster = config.cluster.model_copy(update={"wait_minutes": wait_minutes})
            config = config.model_copy(update={"cluster": cluster})
        places = {
            "model_url": run.model_url,
            "checkpoints_url": run.checkpoints_url,
            "run_id": record.run_id,
            "metrics_owner": run.metrics_owner,
            "cached": run.cached.model_dump(mode="json"),
        }
        run_ranks(
            _rank,
            config={"recipe": content, **places},
            train_config=config,
            storage=run.storage,
            name=run.name,
        )


def _rank(config: dict[str, Any]) -> dict[str, Any]:
    from dataclasses import asdict

    from pipeline.object_store.opening import open_store
    from pipeline.recipe import Recipe
    from pipeline.training.cached_sets import CachedSets
    from pipeline.training.checkpoint_store import CheckpointStore
    from pipeline.training.rank_training import train_on_this_rank
    from pipeline.training.ranks import world_size

    configure_logging()
    recipe = Recipe.model_validate(config["recipe"])
    store = open_store(config["checkpoints_url"])
    outcome = train_on_this_rank(
        recipe.model_copy(update={"train": recipe.train.on_ranks(world_size())}),
        cached=CachedSets.model_validate(config["cached"]),
        checkpoints=CheckpointStore(store, keep=recipe.train.keep_checkpoints),
        model_url=config["model_url"],
        run_id=config["run_id"],
        metrics_owner=config["metrics_owner"],
    )
    return asdict(outcome)
