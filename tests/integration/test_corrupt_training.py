"""A damaged shard in the middle of a training: it ends with the sample's name, or goes on without it, as asked."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cache.index import member_key
from pipeline.cache.sample_reading import CorruptSampleError
from pipeline.loading.loader import SampleReader
from pipeline.models.folder import download_model
from pipeline.object_store.opening import open_store
from pipeline.recipe_file import load_recipe
from pipeline.training import ranks
from pipeline.training.cached_sets import CachedSets, required_manifest
from pipeline.training.checkpoint_store import CheckpointStore
from pipeline.training.rank_training import train_on_this_rank

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def recipe_path(
    tmp_path: Path, small_recipe_in: Callable[..., Path], precompute_here: Callable[..., None]
) -> Path:
    train = {"epochs": 1, "batch_size": 8, "lr": 1e-3, "workers": 1, "engine": "ddp"}
    path = small_recipe_in(tmp_path, train=train)
    precompute_here(path, "sets.train.draws=1")
    return path


@pytest.fixture
def damaged(recipe_path: Path) -> str:
    """A byte of a sample is another one. The sample's key."""
    recipe = load_recipe(recipe_path, ["sets.train.draws=1"])
    store = open_store(recipe.cache.url)
    manifest = required_manifest(store, recipe, "train")
    index, row = SampleReader(store=store, manifest=manifest).index, 17
    key = manifest.shards[int(index["shard"][row])].object_key
    body = bytearray(store.get(key))
    body[int(index["offset"][row]) + int(index["size"][row]) // 2] ^= 4
    store.put(key, bytes(body))
    return member_key(index, row)


def train(path: Path, *overrides: str) -> dict[str, float]:
    """As a rank does it. What the model kept was chosen by."""
    recipe = load_recipe(path, ["sets.train.draws=1", *overrides])
    url = f"{recipe.output_folder}/model"
    with ranks.process_group():
        checkpoints = CheckpointStore(open_store(f"{recipe.output_folder}/checkpoints"), keep=2)
        train_on_this_rank(
            recipe,
            cached=CachedSets.find(recipe, open_store(recipe.cache.url)),
            checkpoints=checkpoints,
            model_url=url,
            run_id=None,
            metrics_owner="training",
        )
    return download_model(url, Path(recipe.output_folder) / "kept")


def test_it_ends_with_the_samples_name(recipe_path: Path, damaged: str) -> None:
    with pytest.raises(
        CorruptSampleError, match=f"sample {damaged} in .*ldznet precompute --repair` mends it"
    ):
        train(recipe_path)


def test_or_goes_on_without_it(recipe_path: Path, damaged: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        kept = train(recipe_path, "loader.on_corrupt=skip", "loader.max_corrupt_share=0.05")
    assert kept["step"] == 4
    assert caplog.text.count(f"skipped sample {damaged}") == 1


def test_but_only_so_many(recipe_path: Path, damaged: str) -> None:
    with pytest.raises(
        CorruptSampleError, match=r"1 of 36 samples .* more than loader.max_corrupt_share=0.01"
    ):
        train(recipe_path, "loader.on_corrupt=skip", "loader.max_corrupt_share=0.01")
