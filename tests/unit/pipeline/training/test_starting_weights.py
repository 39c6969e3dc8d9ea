"""What a training starts from, and that a trained network is known by its weights, not by its name."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ldznet.errors import UserError
from ldznet.modeling.network import SegmentationNetwork
from pipeline.recipe import Recipe
from pipeline.recipe_file import load_recipe
from pipeline.training.rank_training import make_network, training_identity


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory, small_recipe_in: Callable[..., Path]) -> Path:
    """A recipe whose LDM is there."""
    return small_recipe_in(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def trained(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved network whose every weight differs from what a new one starts with."""
    network = network_of(load_recipe(recipe_file))
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.add_(1)
    folder = tmp_path_factory.mktemp("models") / "trained"
    network.save_pretrained(folder)
    return folder


def network_of(recipe: Recipe, *, seed: int = 0) -> SegmentationNetwork:
    torch.manual_seed(seed)
    return make_network(recipe)


def test_every_weight_of_a_trained_network_is_taken_over(recipe_file: Path, trained: Path) -> None:
    recipe = load_recipe(recipe_file, [f"network.init_from={trained}"])
    saved = type(network_of(recipe)).from_pretrained(trained).state_dict()
    started = network_of(recipe, seed=1).state_dict()
    assert all(torch.equal(started[name], saved[name]) for name in saved)
    assert recipe.network.label == "ldznet-adapted"


def test_random_weights_are_not_the_ldms(recipe_file: Path) -> None:
    name = "unet.conv_in.weight"
    from_ldm = load_recipe(recipe_file)
    random = load_recipe(recipe_file, ["network.init_from=random"])
    first, second = (network_of(from_ldm, seed=seed).state_dict()[name] for seed in (0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, network_of(random).state_dict()[name])


def test_another_kind_of_network_is_refused(recipe_file: Path, trained: Path) -> None:
    recipe = load_recipe(recipe_file, [f"network.init_from={trained}", "network.kind=znet"])
    with pytest.raises(UserError, match="has kind='ldznet' where this recipe asks for 'znet'"):
        network_of(recipe)


def test_a_model_that_is_not_there_is_named(recipe_file: Path) -> None:
    with pytest.raises(UserError, match="there is no model folder no/such"):
        network_of(load_recipe(recipe_file, ["network.init_from=no/such"]))


def test_a_training_is_named_by_the_weights_it_starts_from(
    recipe_file: Path, trained: Path, tmp_path: Path
) -> None:
    def identity(start: Path | str) -> str:
        return training_identity(load_recipe(recipe_file, [f"network.init_from={start}"]))

    copy, other = tmp_path / "copy", tmp_path / "other"
    shutil.copytree(trained, copy)
    assert identity(copy) == identity(trained)
    network = network_of(load_recipe(recipe_file))
    network.save_pretrained(other)
    assert len({identity(trained), identity(other), identity("ldm")}) == 3
