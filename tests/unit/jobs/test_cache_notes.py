"""What a job that reads caches notes of them: the keys that precompute has noted."""

from collections.abc import Callable
from pathlib import Path

from jobs.cache_notes import cache_keys
from pipeline.cache.manifest import find_manifest
from pipeline.object_store.opening import open_store
from pipeline.recipe_file import load_recipe


def test_sets_without_a_cache_are_left_out(small_recipe: Callable[..., Path]) -> None:
    assert cache_keys(load_recipe(small_recipe()), ["train", "val", None]) == {}


def test_keys_are_those_of_the_caches(
    small_recipe: Callable[..., Path], precompute_here: Callable[..., None]
) -> None:
    path, fewer = small_recipe(), ["sets.train.draws=1"]
    precompute_here(path, *fewer)
    recipe = load_recipe(path, fewer)
    store = open_store(recipe.cache.url)
    found = {name: find_manifest(store, recipe.request_digest(name)) for name in ("train", "val")}
    assert all(found.values())
    keys = cache_keys(recipe, ["val", "train", "val", None])
    assert keys == {f"cache_key.{name}": one.cache_key for name, one in found.items() if one is not None}
