"""Reading a pretraining recipe: YAML and overrides into a typed, frozen object, or one clear line why not."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.pretraining.recipe import PretrainRecipe
from pipeline.recipe_file import parse_config, read_recipe


def load_pretrain_recipe(path: Path, overrides: Sequence[str] = ()) -> PretrainRecipe:
    """Read a pretraining recipe, apply overrides such as `diffusion.steps=100`, and check all of it.

    Raises:
        UserError: the file is missing or no YAML, or a key or value is wrong; the nearest valid key is named.
    """
    return parse_config(PretrainRecipe, read_recipe(path, overrides), source=str(path))
