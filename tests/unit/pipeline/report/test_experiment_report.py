"""The report of an evaluation, made of what the caches hold: sets that nobody scored may be missing."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cache import layout
from pipeline.cache.manifest import find_manifest
from pipeline.evaluation.run import Evaluation
from pipeline.object_store.opening import open_store
from pipeline.recipe import Recipe
from pipeline.recipe_file import load_recipe
from pipeline.report.experiment import write_experiment_report
from pipeline.tracking.tracker import Tracker

MORE = "sets.more={split: val, view: {size: 64}, prompts: ['{}.']}"
MISSING = "The cache holds no features of {} that can be read, so their samples are not counted here."


@pytest.fixture(scope="module")
def computed(
    tmp_path_factory: pytest.TempPathFactory,
    small_recipe_in: Callable[..., Path],
    precompute_here: Callable[..., None],
) -> Path:
    """A recipe's file; train and val are in its cache."""
    path = small_recipe_in(tmp_path_factory.mktemp("report"))
    precompute_here(path)
    return path


def report(recipe: Recipe, folder: Path) -> str:
    """Of an evaluation whose scores do not matter here."""
    with Tracker(recipe.tracking, folder=folder) as tracker:
        path = write_experiment_report(recipe, Evaluation(), folder / "report.html", tracker=tracker)
    return path.read_text()


def test_every_set_of_the_recipe_is_told_of(computed: Path, tmp_path: Path) -> None:
    page = report(load_recipe(computed), tmp_path)
    assert "<dt>train</dt><dd>144 samples</dd>" in page
    assert "<dt>val</dt><dd>9 samples</dd>" in page
    assert "The cache holds no features" not in page


def test_a_set_that_was_never_computed_is_told_as_such(computed: Path, tmp_path: Path) -> None:
    page = report(load_recipe(computed, [MORE]), tmp_path)
    assert MISSING.format("more") in page
    assert "<dt>train</dt><dd>144 samples</dd>" in page
    assert "<dt>more</dt>" not in page


@pytest.mark.parametrize("harm", ["dropped", "damaged"])
def test_a_set_whose_features_went_since_is_told_as_such(harm: str, computed: Path, tmp_path: Path) -> None:
    shutil.copytree(computed.parent / "cache", tmp_path / "cache")
    recipe = load_recipe(computed, [f"cache.url={tmp_path / 'cache'}"])
    store = open_store(recipe.cache.url)
    manifest = find_manifest(store, recipe.request_digest("train"))
    assert manifest is not None
    key = layout.manifest_key(manifest.cache_key, manifest.manifest_id)
    if harm == "dropped":
        store.delete(key)
    else:
        store.put(key, store.get(key)[:-20])
    page = report(recipe, tmp_path)
    assert MISSING.format("train") in page
    assert "<dt>val</dt><dd>9 samples</dd>" in page
