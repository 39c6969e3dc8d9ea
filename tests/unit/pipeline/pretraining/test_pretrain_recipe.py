"""Pretraining recipes: those of the project, and what is refused."""

from pathlib import Path

import pytest

from ldznet.errors import UserError
from pipeline.pretraining.recipe_file import load_pretrain_recipe

RECIPES = Path(__file__).parents[4] / "jobs" / "recipes"
CPU = RECIPES / "pretrain_cpu.yaml"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("pretrain_*.yaml")), ids=lambda path: path.stem)
def test_the_projects_recipes_hold(path):
    recipe = load_pretrain_recipe(path)
    assert recipe.output_folder == f"runs/pretrain/{recipe.name}"
    assert recipe.scenes.held_out_nouns > recipe.scenes.max_objects
    assert set(recipe.scenes.foreign_styles).isdisjoint(recipe.scenes.styles)
    assert len(recipe.scenes.styles) >= 2


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("diffusion.stepz=3", "'diffusion.stepz': did you mean 'steps'"),
        ("scenes.size=96", "multiples of 64"),
        ("workers=5", "does not divide among workers=5"),
        ("autoencoder.crop=512", "more than scenes.size=128"),
        ("device=tpu", "device"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(override, told):
    with pytest.raises(UserError, match=told):
        load_pretrain_recipe(CPU, [override])


def identities(*overrides):
    recipe = load_pretrain_recipe(CPU, overrides)
    return tuple(recipe.stage_identity(stage) for stage in ("autoencoder", "latents", "diffusion"))


def test_a_stages_identity_changes_with_what_its_result_depends_on():
    plain = identities()
    assert len(set(plain)) == 3

    def changed(*overrides):
        return [one != other for one, other in zip(plain, identities(*overrides), strict=True)]

    assert changed("diffusion.lr=1") == [False, False, True]
    assert changed("latents.captions=3") == [False, True, True]
    assert changed("autoencoder.lr=1") == [True, True, True]
    assert changed("scenes.nouns=63") == [True, True, True]
    assert changed("seed=1") == [True, True, True]
    assert changed("diffusion.steps=7", "diffusion.log_every=3", "threads=2") == [False, False, False]
