"""What docs/results.md compares: every cell a sound recipe, and a choice that names nothing is refused."""

from pathlib import Path

import pytest

from ldznet.errors import UserError
from ldznet.modeling import UNetConfig
from pipeline.recipe_file import load_recipe
from pipeline.results.experiments import EXPERIMENTS
from pipeline.training.rank_training import training_identity

RECIPE = Path(__file__).parents[4] / "jobs" / "recipes" / "scenes_128.yaml"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_cell_is_a_sound_recipe_and_a_training_of_its_own(name: str) -> None:
    experiment = EXPERIMENTS[name]
    recipes = [load_recipe(RECIPE, cell.all_overrides) for cell in experiment.cells]
    assert (
        len(set(map(training_identity, recipes)))
        == len({cell.label for cell in experiment.cells})
        == len(recipes)
    )
    assert all(set(experiment.sets) <= set(recipe.sets) for recipe in recipes)


def test_a_training_that_two_experiments_name_is_one() -> None:
    def identity(name: str) -> str:
        return training_identity(load_recipe(RECIPE, EXPERIMENTS[name].cells[0].all_overrides))

    assert identity("table") == identity("ablations")


def test_some_cells_alone() -> None:
    chosen = EXPERIMENTS["table"].only(systems=["znet"], seeds=[1, 3])
    assert [(cell.system, cell.seed) for cell in chosen.cells] == [("znet", 1), ("znet", 3)]
    assert EXPERIMENTS["table"].only() == EXPERIMENTS["table"]


@pytest.mark.parametrize("choice", [{"systems": ["zent"]}, {"seeds": [9]}])
def test_a_choice_that_names_nothing_is_refused(choice: dict[str, list[str]]) -> None:
    with pytest.raises(
        UserError, match=r"table has no such training: its systems are 'ldznet', .* its seeds 1, 2, 3"
    ):
        EXPERIMENTS["table"].only(**choice)  # type: ignore[arg-type]


def test_what_a_part_makes_again() -> None:
    whole, part = EXPERIMENTS["table"], EXPERIMENTS["table"].only(seeds=[3])
    assert whole.makes("znet", seed=1, set_name="test")
    assert part.makes("znet", seed=3, set_name="test")
    assert not part.makes("znet", seed=1, set_name="test")
    assert not part.makes("anet", seed=3, set_name="test")
    assert not part.makes("znet", seed=3, set_name="val")
    assert part.makes("noise-map", seed=None, set_name="test")


def test_a_key_that_came_later_leaves_identities_as_they_were() -> None:
    plain, without = load_recipe(RECIPE), load_recipe(RECIPE, ["network.text=none"])
    assert "text" not in plain.network.model_dump(mode="json")
    assert load_recipe(RECIPE, ["network.text=phrase"]).digest() == plain.digest() != without.digest()
    assert training_identity(plain) != training_identity(without)
    unet = UNetConfig()
    assert [one.network.config(unet, latent_side=16).text for one in (plain, without)] == ["phrase", "none"]
