"""The cells of a grid: their recipes, names and configurations."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ldznet.errors import UserError
from pipeline.experiments.cell import load_experiment
from pipeline.recipe_file import load_recipe

Write = Callable[..., Path]
GRID = ("fusion=cross_attention,concat", "seed=1,2")


def test_each_cell_is_a_recipe_as_if_written_out(small_recipe: Write) -> None:
    path = small_recipe()
    experiment = load_experiment(path, [*GRID, "steps=9"])
    assert experiment.is_grid
    assert [cell.recipe for cell in experiment.cells] == [
        load_recipe(path, [f"network.fusion={fusion}", f"train.seed={seed}", "train.steps=9"])
        for fusion in ("cross_attention", "concat")
        for seed in (1, 2)
    ]
    assert [cell.label for cell in experiment.cells] == [
        "ldznet-seed-1", "ldznet-seed-2", "ldznet-concat-seed-1", "ldznet-concat-seed-2",
    ]  # fmt: skip
    assert experiment.cells[3].title == "fusion=concat seed=2"
    assert {cells[0].title: len(cells) for cells in experiment.configurations.values()} == {
        "fusion=cross_attention seed=1": 2,
        "fusion=concat seed=1": 2,
    }


def test_a_recipe_alone_is_one_cell(small_recipe: Write) -> None:
    path = small_recipe()
    experiment = load_experiment(path, ["train.steps=9"])
    assert not experiment.is_grid
    assert experiment.recipe == load_recipe(path, ["train.steps=9"])


def test_more_values_are_the_same_grid_and_anything_else_another(small_recipe: Write) -> None:
    path = small_recipe()
    name = load_experiment(path, GRID).name
    assert load_experiment(path, ["seed=3,1,2", "fusion=concat,cross_attention"]).name == name
    assert load_experiment(path, [*GRID, "train.workers=1", "train.log_every=2"]).name == name
    for other in (
        [*GRID, "steps=9"],
        ["seed=1,2"],
        [*GRID, "train.lr=1e-2,1e-3"],
        [*GRID, "positional=sinusoidal"],
    ):
        assert load_experiment(path, other).name != name


def test_lists_and_odd_values_make_names_of_folders(small_recipe: Write) -> None:
    cells = load_experiment(small_recipe(), ["blocks=[8],[8,9]", "lr=1e-4,1e-3", "clip_norm=null,1.0"]).cells
    assert [cell.label for cell in cells[:2]] == [
        "ldznet-blocks-8-lr-1e-4-clip_norm-null",
        "ldznet-blocks-8-lr-1e-4-clip_norm-1.0",
    ]
    assert cells[-1].recipe.network.blocks == (8, 9)
    assert cells[0].recipe.train.clip_norm is None


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["fusion=concat,concatt"], "network.fusion"),
        (["train.sed=1,2"], r"unknown key 'train\.sed': did you mean 'seed'"),
        (["train.workers=1,3"], "does not divide among workers=3"),
        (["train.workers=1,2"], "are the same training"),
        (["lr=1e-3,0.001"], "are the same training"),
    ],
)
def test_mistakes_in_any_cell_are_told_before_anything(
    overrides: list[str], told: str, small_recipe: Write
) -> None:
    with pytest.raises(UserError, match=told):
        load_experiment(small_recipe(), overrides)
