"""Folders that a recipe names relative to where it runs: what they mean to a job that runs elsewhere."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ldznet.errors import UserError

if TYPE_CHECKING:
    from pipeline.recipe import Recipe


def place_overrides(recipe: "Recipe", *, folder: Path, here: bool) -> list[str]:
    """Overrides by which a recipe's relative folders mean the same to a submitted job, whose own folder is a copy.

    Args:
        recipe: as it was asked for.
        folder: of the project, where a relative path begins.
        here: whether all nodes of the cluster are this machine.

    Raises:
        UserError: nodes are elsewhere, and a relative folder would hold what must last or what all nodes read.
    """
    relative = {key: place for key, place in _places(recipe) if _is_relative(place)}
    if here:
        absolute = [f"{key}={folder / place}" for key, place in relative.items() if "[" not in key]
        return [*absolute, *_models(recipe, folder)]
    if recipe.storage is not None:  # then reports and the like are kept by MLflow
        relative.pop("output", None)
    if relative:
        key, place = next(iter(relative.items()))
        raise UserError(
            f"{key}={place} is a folder of this machine, and the cluster's nodes are others: give a URL "
            f"({key}=s3://BUCKET/{Path(place).name}), or the absolute path of a folder that every node sees"
        )
    return []


def _places(recipe: "Recipe") -> Iterator[tuple[str, str]]:
    yield "cache.url", recipe.cache.url
    yield "output", recipe.output_folder
    if recipe.storage is not None:
        yield "storage", recipe.storage
    yield "data.root", recipe.data.root
    for name, chosen in recipe.sets.items():
        if chosen.data is not None:
            yield f"sets.{name}.data.root", chosen.data.root
    for number, system in enumerate(recipe.evaluate.models):
        if Path(system.source).is_dir():
            yield f"evaluate.models[{number}]", system.source
    source = recipe.ldm.source
    if recipe.miniature is not None or Path(source).is_dir():  # else a hub id
        yield "ldm.source", source


def _models(recipe: "Recipe", folder: Path) -> list[str]:
    """The systems to score, where one is a folder of the project."""
    models = [system.model_dump(mode="json", exclude_defaults=True) for system in recipe.evaluate.models]
    local = [
        model for model in models if _is_relative(model["source"]) and (folder / model["source"]).is_dir()
    ]
    for model in local:
        model["source"] = str(folder / model["source"])
    return [f"evaluate.models={json.dumps(models)}"] if local else []


def _is_relative(place: str) -> bool:
    return ":/" not in place and not Path(place).expanduser().is_absolute()
