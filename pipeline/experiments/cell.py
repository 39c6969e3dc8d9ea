"""The cells of a grid: each one recipe, one training, one configuration that others differ from by the seed alone."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ldznet.config import Config
from ldznet.errors import UserError
from pipeline.cache.spec import canonical_json
from pipeline.experiments.grid import read_grid
from pipeline.recipe import Recipe
from pipeline.recipe_file import load_recipe
from pipeline.training.rank_training import training_identity

SEED: Final = "train.seed"
# Keys that the network's own label tells of.
_IN_LABEL: Final = frozenset(
    f"network.{name}" for name in ("kind", "blocks", "fusion", "positional", "text", "init_from")
)
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9.]+")

Choices = tuple[tuple[str, str], ...]  # key and value as written, in the order of the axes


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One training of a grid."""

    choices: Choices
    recipe: Recipe

    @property
    def configuration(self) -> Choices:
        """What it has in common with the cells that differ by the seed alone."""
        return tuple((key, value) for key, value in self.choices if key != SEED)

    @property
    def title(self) -> str:
        """Its choices in short, such as `fusion=concat seed=2`."""
        return title_of(self.choices)

    @property
    def label(self) -> str:
        """Names its model's folder, such as `ldznet-concat-seed-2`."""
        told = [(key, value) for key, value in self.choices if key not in _IN_LABEL]
        words = [f"{_leaf(key)}-{_NOT_IN_NAMES.sub('-', value).strip('-')}" for key, value in told]
        return "-".join([self.recipe.network.label, *words])


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """A recipe's trainings: one, or a grid of them."""

    cells: tuple[Cell, ...]

    @property
    def recipe(self) -> Recipe:
        """Of the first cell; what does not vary is the same in all."""
        return self.cells[0].recipe

    @property
    def is_grid(self) -> bool:
        """Whether anything varies."""
        return bool(self.cells[0].choices)

    @property
    def keys(self) -> tuple[str, ...]:
        """What varies, in the order in which it was written."""
        return tuple(key for key, _ in self.cells[0].choices)

    @property
    def name(self) -> str:
        """Names the grid by what does not vary and what does, not by its values: more values, the same grid."""
        common = self.recipe
        for key in self.keys:
            common = _with_default(common, key.split("."))
        identity = [training_identity(common), sorted(self.keys)]
        return f"{common.name}-grid-{hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:12]}"

    @property
    def configurations(self) -> dict[Choices, tuple[Cell, ...]]:
        """Cells by configuration, in their order."""
        found: dict[Choices, list[Cell]] = {}
        for cell in self.cells:
            found.setdefault(cell.configuration, []).append(cell)
        return {choices: tuple(cells) for choices, cells in found.items()}


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read a recipe file under overrides of which some may name alternatives; every cell is checked before any work.

    Raises:
        UserError: as `load_recipe` and `read_grid`, or two cells are the same training.
    """
    grid = read_grid(overrides)
    cells = []
    for choices in grid.choices():
        chosen = [f"{key}={value}" for key, value in choices]
        cells.append(Cell(choices=choices, recipe=load_recipe(path, [*grid.fixed, *chosen])))
    experiment = Experiment(cells=tuple(cells))
    _refuse_equal(experiment)
    return experiment


def title_of(choices: Choices) -> str:
    """Choices in short: keys without their section."""
    return " ".join(f"{_leaf(key)}={value}" for key, value in choices) or "the recipe"


def _refuse_equal(experiment: Experiment) -> None:
    if not experiment.is_grid:
        return
    seen: dict[str, Cell] = {}
    for cell in experiment.cells:
        other = seen.setdefault(training_identity(cell.recipe), cell)
        if other is not cell:
            raise UserError(
                f"{other.title!r} and {cell.title!r} are the same training: vary what changes a result"
            )
    (label, times), *_ = Counter(cell.label for cell in experiment.cells).most_common(1)
    if times > 1:
        raise UserError(
            f"{times} cells of the grid would be called {label!r}: do their values make a difference to this network?"
        )


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _with_default(config: Recipe, path: Sequence[str]) -> Recipe:
    changed = _changed(config, path)
    assert isinstance(changed, Recipe), "a changed copy keeps its class"
    return changed


def _changed(config: Config, path: Sequence[str]) -> Config:
    name, *rest = path
    if rest:
        value: object = _changed(getattr(config, name), rest)
    else:
        value = type(config).model_fields[name].get_default(call_default_factory=True)
    return config.model_copy(update={name: value})
