"""What the recipe may ask of online features, and which trainings may go on from each other's checkpoints."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ldznet.errors import UserError
from pipeline.recipe_file import load_recipe
from pipeline.training.config import TrainConfig
from pipeline.training.rank_training import training_identity


@pytest.mark.parametrize("kind", ["flip", "colour", "rotate"])
def test_what_changes_the_photo_is_refused_with_cached_features(
    small_recipe: Callable[..., Path], kind: str
) -> None:
    with pytest.raises(UserError) as error:
        load_recipe(small_recipe(), [f"train.augment=[{kind}]"])
    told = str(error.value)
    assert f"augment={kind} changes the photo, and so every feature made of it" in told
    assert "set train.features=online" in told
    assert "\n" not in told


def test_what_nobody_can_do_online_either_is_named(small_recipe: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="augment knows flip, not 'rotate'"):
        load_recipe(small_recipe(), ["train.features=online", "train.augment=[rotate]"])


def test_shards_cannot_be_streamed_where_none_are_read(small_recipe: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"loader\.mode=sequential reads shards"):
        load_recipe(small_recipe(), ["train.features=online", "loader.mode=sequential"])


def test_a_grid_of_timesteps_has_no_fresh_draws(small_recipe: Callable[..., Path]) -> None:
    grid = ["sets.train.timesteps={grid: [100, 400]}", "sets.train.draws=2", "train.features=online"]
    with pytest.raises(UserError, match=r"set train\.online_draws=cycle"):
        load_recipe(small_recipe(), grid)
    assert load_recipe(small_recipe(), [*grid, "train.online_draws=cycle"]).train.draws == "cycle"


def test_a_training_goes_on_from_a_checkpoint_of_equal_draws_only() -> None:
    cached = TrainConfig(steps=4)
    cycle = TrainConfig(steps=4, features="online", online_draws="cycle")
    fresh = TrainConfig(steps=4, features="online")
    flipped = TrainConfig(steps=4, features="online", online_draws="cycle", augment=("flip",))
    assert cached.identity() == cycle.identity()
    assert len({one.identity() for one in (cached, fresh, flipped)}) == 3


def test_the_name_of_a_training_follows_its_draws(small_recipe: Callable[..., Path]) -> None:
    def name(*overrides: str) -> str:
        return training_identity(load_recipe(small_recipe(), overrides))

    online = "train.features=online"
    assert name() == name(online, "train.online_draws=cycle")
    assert len({name(), name(online), name(online, "train.augment=[flip]")}) == 3
