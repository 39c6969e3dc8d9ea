"""Folders that a recipe names relative to where it runs: what they mean to a job that runs elsewhere."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ldznet.errors import UserError

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

_SEEN = "the absolute path of a folder that every node sees"
_URL = f"give a URL ({{key}}=s3://BUCKET/{{name}}), or {_SEEN}"
_OUTPUT = f"set storage=s3://BUCKET/{{name}} for checkpoints and models, or give {_SEEN}"
_MODEL = f"give a registered model ({{key}}=models:/NAME@ALIAS), or {_SEEN}"
_LDM = f"give a hub id, or {_SEEN}"
_SERVER = (
    "give a server ({key}=http://HOST:PORT), or leave it out where MLFLOW_TRACKING_URI is set on the nodes"
)
_SQLITE = "sqlite:///"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """A folder or file that a recipe's key names."""

    key: str
    path: str
    mend: str  # what to give where nodes are elsewhere
    before: str = ""  # in the key's value, before the path

    @property
    def is_relative(self) -> bool:
        return ":/" not in self.path and not Path(self.path).expanduser().is_absolute()


def place_overrides(recipe: "Recipe", *, folder: Path, here: bool) -> list[str]:
    """Overrides by which a recipe's relative folders mean the same to a submitted job, whose own folder is a copy.

    Args:
        recipe: as it was asked for.
        folder: of the project, where a relative path begins.
        here: whether all nodes of the cluster are this machine.

    Raises:
        UserError: nodes are elsewhere, and a relative folder would hold what must last or what all nodes read.
    """
    from pipeline.recipe_file import override_of

    relative = [place for place in _places(recipe, folder) if place.is_relative]
    if here:
        single = [place for place in relative if "[" not in place.key]
        absolute = [override_of(place.key, f"{place.before}{folder / place.path}") for place in single]
        return [*absolute, *_models(recipe, folder)]
    for place in relative:
        if place.key == "output" and recipe.storage is not None:
            continue  # then reports and the like are kept by MLflow
        mend = place.mend.format(key=place.key, name=Path(place.path).name)
        raise UserError(
            f"{place.key}={place.before}{place.path} is a folder of this machine, and the cluster's nodes are "
            f"others: {mend}"
        )
    return []


def place_overrides_of_all(recipes: "Sequence[Recipe]", *, folder: Path, here: bool) -> list[str]:
    """The same for the cells of a grid, which are sent as one.

    Raises:
        UserError: as `place_overrides`, or an alternative of the grid is a relative folder.
    """
    first, *others = (place_overrides(recipe, folder=folder, here=here) for recipe in recipes)
    different = sorted({override for one in others for override in {*one} ^ {*first}})
    if different:
        key, _, place = different[0].partition("=")
        raise UserError(
            f"{key} has alternatives, one of them a relative folder, which means another one to the job: write "
            f"{key}={place}"
        )
    return first


def relative_places(recipe: "Recipe", *, folder: Path) -> list[str]:
    """The recipe's relative folders, as KEY=FOLDER."""
    return [
        f"{place.key}={place.before}{place.path}" for place in _places(recipe, folder) if place.is_relative
    ]


def _places(recipe: "Recipe", folder: Path) -> Iterator[_Place]:
    yield _Place(key="cache.url", path=recipe.cache.url, mend=_URL)
    yield _Place(key="output", path=recipe.output_folder, mend=_OUTPUT)
    if recipe.storage is not None:
        yield _Place(key="storage", path=recipe.storage, mend=_URL)
    yield _Place(key="data.root", path=recipe.data.root, mend=_URL)
    for name, chosen in recipe.sets.items():
        if chosen.data is not None:
            yield _Place(key=f"sets.{name}.data.root", path=chosen.data.root, mend=_URL)
    yield from _model_places(recipe, folder)
    yield from _tracking_places(recipe)


def _model_places(recipe: "Recipe", folder: Path) -> Iterator[_Place]:
    """Networks and the LDM, where they are folders and no names of a hub or registry."""
    for number, system in enumerate(recipe.evaluate.models):
        if (folder / system.source).is_dir():
            yield _Place(key=f"evaluate.models[{number}]", path=system.source, mend=_MODEL)
    start = recipe.network.init_from
    if recipe.network.starts_trained and (folder / start).is_dir():
        yield _Place(key="network.init_from", path=start, mend=_MODEL)
    source = recipe.ldm.source
    if recipe.miniature is not None or (folder / source).is_dir():  # else a hub id
        yield _Place(key="ldm.source", path=source, mend=_LDM)


def _tracking_places(recipe: "Recipe") -> Iterator[_Place]:
    uri, artifacts = recipe.tracking.uri, recipe.tracking.artifacts
    if uri is not None and uri.startswith(_SQLITE):
        file = uri.removeprefix(_SQLITE)
        yield _Place(key="tracking.uri", path=file, mend=_SERVER, before=_SQLITE)
    if artifacts is not None:
        yield _Place(key="tracking.artifacts", path=artifacts, mend=_URL)


def _models(recipe: "Recipe", folder: Path) -> list[str]:
    """The systems to score, where one is a folder of the project."""
    places = {place.path for place in _model_places(recipe, folder) if place.is_relative}
    models = [system.model_dump(mode="json", exclude_defaults=True) for system in recipe.evaluate.models]
    local = [model for model in models if model["source"] in places]
    for model in local:
        model["source"] = str(folder / model["source"])
    return [f"evaluate.models={json.dumps(models)}"] if local else []
