"""What a job trains and writes: no two jobs may do so at once.

A training is known by the place of its checkpoints, `STORAGE/NAME-LABEL-IDENTITY`. Its identity leaves out what changes
no result (`train.workers`, `zero_stage`, `log_every`, `cluster`, all of `evaluate` and `cache`), so two recipes may be
one training; and it follows from the recipe, so that the submitter touches neither data nor weights to tell. With one
exception: what a network that goes on from a trained one goes on from is known by its weights. So trainings that differ
by nothing but which trained network `network.init_from` names count as one here.

Files in the output folder have names that do not follow from what is computed. They matter where the folder lasts (an
absolute path); any other lies in the job's own copy of the project.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.recipe import Recipe


def trainings(job: str, recipes: "Mapping[str, Recipe]") -> list[str]:
    """Where the trainings of a job keep their checkpoints.

    Args:
        job: its name.
        recipes: label of the model's folder -> recipe; several of a grid.
    """
    return [_training(recipe) for recipe in recipes.values()] if job in {"train", "pipeline"} else []


def lasting_results(job: str, recipes: "Mapping[str, Recipe]") -> list[str]:
    """What a job replaces in an output folder that lasts: models' folders, the results of an evaluation."""
    return [
        os.path.normpath(Path(recipe.output_folder) / name)
        for label, recipe in recipes.items()
        if Path(recipe.output_folder).is_absolute()
        for name in _results(job, label)
    ]


def labelled_recipes(
    job: str, recipes: "Sequence[Recipe]", *, path: Path, overrides: Sequence[str]
) -> "dict[str, Recipe]":
    """The recipes by the labels of their models' folders, as the job will call them."""
    if job != "train":
        return {recipe.network.label: recipe for recipe in recipes}
    from pipeline.experiments.cell import load_experiment

    return {cell.label: cell.recipe for cell in load_experiment(path, overrides).cells}


def _training(recipe: "Recipe") -> str:
    from pipeline.training.rank_training import training_identity

    network, before = recipe.network, ""
    if network.starts_trained:
        anyhow = network.model_copy(update={"init_from": "ldm"})
        recipe, before = recipe.model_copy(update={"network": anyhow}), "from-any-"
    name = f"{recipe.name}-{network.label}-{before}{training_identity(recipe)}"
    return f"{_canonical(recipe.storage_url)}/{name}"


def _results(job: str, label: str) -> Iterator[str]:
    if job in {"train", "pipeline"}:
        yield f"models/{label}"
    if job in {"evaluate", "pipeline"}:
        yield "evaluation.json"


def _canonical(url: str) -> str:
    """One spelling of a store's place."""
    place = url.removeprefix("file://")
    return place.rstrip("/") if "://" in place else os.path.normpath(Path(place).absolute())
