"""An evaluation on a GPU of the cluster, where this process has none: a Ray task that fetches the models it scores.

A job's own process lies on the cluster's head, which mostly has no GPU. Networks go there and back by the storage that
checkpoints go by; masks that others made are read here, where they lie.
"""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from jobs.local_ray import ray_session
from ldznet.errors import FinalError, UserError

if TYPE_CHECKING:
    from pipeline.evaluation.run import Evaluation
    from pipeline.evaluation.scored_system import LocatedSystem
    from pipeline.recipe import Recipe, SystemConfig

logger = logging.getLogger("jobs.evaluate")

_PLACE = "evaluated"  # in the storage
_LEFT_BEHIND_S = 24 * 3600.0  # an evaluation takes minutes
_SCRATCH = "ldznet-evaluation-"


def evaluate_where_it_is_quick(recipe: "Recipe", systems: "Sequence[SystemConfig]") -> "Evaluation":
    """`evaluate_models`, here or on a GPU of the cluster, as `evaluate.device` says.

    Raises:
        UserError: as `evaluate_models`; or the cluster had no GPU to give for `train.cluster.wait_minutes`.
    """
    import torch

    from pipeline.evaluation.run import evaluate_models, locate_systems

    device = recipe.evaluate.device
    if device == "here" or torch.cuda.is_available() or not os.environ.get("RAY_ADDRESS"):
        return evaluate_models(recipe, systems)
    located = locate_systems(recipe, systems)
    far = [one for one in located if one.family != "masks"]
    with ray_session():
        if not far or (device == "auto" and not _gpus()):
            return evaluate_models(recipe, systems)
        evaluation = _evaluate_on_gpu(recipe, far)
    evaluation.folders = [one.folder for one in far if one.family == "network"]
    near = [one.config for one in located if one.family == "masks"]
    if near:
        evaluation.add(evaluate_models(recipe, near))
    places = {one.name: number for number, one in enumerate(located)}
    evaluation.results.sort(key=lambda result: places[result.model])
    return evaluation


def _gpus() -> float:
    import ray

    return float(ray.cluster_resources().get("GPU", 0))


def _evaluate_on_gpu(recipe: "Recipe", located: "Sequence[LocatedSystem]") -> "Evaluation":
    import ray
    from ray.exceptions import RayTaskError
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    with ExitStack() as stack:
        group = stack.enter_context(_room(recipe))
        sweep_shared(recipe)
        systems = [stack.enter_context(_shared(one, recipe)) for one in located]
        there = ray.remote(num_gpus=1, num_cpus=1)(_evaluate_there).options(
            scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=group)
        )
        logger.info("scoring %d systems on a GPU of the cluster", len(systems))
        try:
            evaluation: Evaluation = ray.get(there.remote(recipe, systems))
        except RayTaskError as error:
            if isinstance(error.cause, UserError | FinalError):
                raise error.cause from None
            raise
        return evaluation


@contextmanager
def _room(recipe: "Recipe") -> Iterator[Any]:
    """A GPU, kept until the end."""
    from ray.util.placement_group import placement_group, remove_placement_group

    cluster = recipe.train.cluster
    wanted: dict[str, float] = {"GPU": 1, "CPU": 1}
    if cluster.accelerator is not None:
        wanted[f"accelerator_type:{cluster.accelerator}"] = 0.001
    group = placement_group([wanted])
    try:
        if not group.wait(60 * cluster.wait_minutes):
            raise UserError(
                f"the Ray cluster had no GPU for the evaluation for {cluster.wait_minutes:g} minutes "
                "(train.cluster.wait_minutes): add a node, or score on the CPU by evaluate.device=here"
            )
        yield group
    finally:
        remove_placement_group(group)


@contextmanager
def _shared(located: "LocatedSystem", recipe: "Recipe") -> "Iterator[tuple[SystemConfig, str | None]]":
    """A system as another node finds it, under its name here; a network's folder lies in the storage meanwhile."""
    from pipeline.models.folder import model_digest, upload_model
    from pipeline.object_store.opening import open_store

    config = located.config.model_copy(update={"name": located.name})
    if located.family != "network":
        yield config, None
        return
    url = f"{recipe.storage_url}/{_PLACE}/{model_digest(located.folder)[:12]}-{uuid4().hex[:8]}"
    try:
        upload_model(located.folder, url=url, facts={"step": 0})
        yield config, url
    finally:
        store = open_store(url)
        for info in list(store.list()):
            store.delete(info.key)


def sweep_shared(recipe: "Recipe") -> int:
    """Remove networks that evaluations left in the storage when they were killed. Returns how many objects went."""
    from pipeline.object_store.opening import open_store

    store = open_store(f"{recipe.storage_url}/{_PLACE}")
    gone = [info for info in store.list() if info.modified < time.time() - _LEFT_BEHIND_S]
    for info in gone:
        store.delete(info.key)
    return len(gone)


def _evaluate_there(recipe: "Recipe", systems: "Sequence[tuple[SystemConfig, str | None]]") -> "Evaluation":
    """In the task."""
    from jobs.entry import configure_logging
    from pipeline.evaluation.run import evaluate_models
    from pipeline.held_folder import held_folder, sweep_folders
    from pipeline.models.folder import download_model

    configure_logging()
    sweep_folders(_SCRATCH)
    with held_folder(_SCRATCH) as scratch:
        found = []
        for number, (config, url) in enumerate(systems):
            folder = scratch / f"{number}"
            if url is not None:
                download_model(url, folder)
            found.append(config if url is None else config.model_copy(update={"source": str(folder)}))
        return evaluate_models(recipe, found)
