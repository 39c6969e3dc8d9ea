"""`--dry-run`: the recipe is checked and told, and nothing is touched."""

from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.entry import recipe_job
from pipeline.recipe_file import load_recipe


def refuse(recipe: object) -> None:
    raise AssertionError("the job ran")


@pytest.mark.parametrize("before", [True, False])
def test_it_tells_and_does_nothing(
    before: bool, small_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small_recipe()
    there = sorted(recipe.parent.rglob("*"))
    words = ["--dry-run", "train.steps=9"] if before else ["train.steps=9", "--dry-run"]
    assert recipe_job("probe")(refuse)([str(recipe), *words]) == 0
    told = capsys.readouterr().out
    resolved = load_recipe(recipe, ["train.steps=9"])
    assert f"small, digest {resolved.digest()}" in told
    assert resolved.cache.url in told
    assert sorted(recipe.parent.rglob("*")) == there


def test_mistakes_are_told_as_ever(
    small_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe_job("probe")(refuse)([str(small_recipe()), "--dry-run", "train.stepps=9"]) == 2
    assert "unknown key 'train.stepps': did you mean 'steps'?" in capsys.readouterr().err
