"""A training's name and its record: found again while recipe, data and frozen LDM are the same."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ldznet.errors import UserError
from ldznet.miniature_ldm import MiniatureConfig, build_miniature_ldm
from pipeline.models.folder import upload_model
from pipeline.recipe_file import load_recipe
from pipeline.training.run import TrainingRun


@pytest.fixture
def data(small_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_data, tmp_path / "data"))


@pytest.fixture
def path(small_recipe: Callable[..., Path], data: Path) -> Path:
    return small_recipe(data={"format": "folder", "root": str(data)})


def training(path: Path, *overrides: str) -> TrainingRun:
    return TrainingRun(load_recipe(path, overrides))


def finish(run: TrainingRun, folder: Path) -> None:
    """Leave what a training leaves that has come to its end."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with run.recorded() as record:
        upload_model(folder, url=run.model_url, facts={"step": 4.0})
        run.conclude(record)


def test_equal_recipes_find_it_finished(
    path: Path, precompute_here: Callable[..., None], tmp_path: Path
) -> None:
    precompute_here(path)
    assert training(path).finished() is None
    finish(training(path), tmp_path / "model")
    found = training(path, "train.micro_batch=2", "train.keep_checkpoints=3").finished()
    assert found is not None
    assert found.facts == {"step": 4.0}
    assert training(path, "train.features=online", "train.online_draws=cycle").finished() == found
    assert training(path, "train.lr=0.1").finished() is None
    assert training(path, "train.patience=3", "train.validate_every=2").finished() is None


def test_another_set_to_validate_on_is_another_training(path: Path) -> None:
    named = {
        training(path, *changed).name
        for changed in ([], ["validate_on=null"], ["sets.val.view.size=128"], ["sets.val.view.policy=shared"])
    }
    assert len(named) == 4


def add_a_phrase(data: Path) -> None:
    phrases = data / "phrases.jsonl"
    first, *rest = phrases.read_text().splitlines()
    phrases.write_text("\n".join([first, first.replace("the red box", "a box in red"), *rest]) + "\n")


def test_what_it_reads_stays_what_it_was_begun_with(
    path: Path, data: Path, precompute_here: Callable[..., None], tmp_path: Path
) -> None:
    precompute_here(path)
    run = training(path)
    with run.cache_held():
        read = run.cached
        add_a_phrase(data)
        precompute_here(path)  # by somebody else, beside it
        assert run.cached == read != training(path).cached
        finish(run, tmp_path / "model")
        assert run.finished() is not None
        alike = training(path, "train.lr=0.1")
        alike.read_as(run)
        assert alike.cached == read
    with pytest.raises(UserError, match="finished on other samples or another frozen LDM"):
        training(path).finished()  # that training never saw the phrase


def test_a_set_of_the_same_split_does_not_validate(path: Path, precompute_here: Callable[..., None]) -> None:
    few = "sets.few={split: train, data: {format: folder, root: %s, limit: 3}}"
    data = load_recipe(path).data.root
    for overrides in ([few % data, "validate_on=few"], ["validate_on=train"]):
        precompute_here(path, *overrides)
        with pytest.raises(UserError, match="is what it trains on: name a set of the val split, or null"):
            training(path, *overrides).check()


def test_other_samples_are_told(
    path: Path, data: Path, precompute_here: Callable[..., None], tmp_path: Path
) -> None:
    precompute_here(path)
    finish(training(path), tmp_path / "model")
    add_a_phrase(data)
    precompute_here(path)
    with pytest.raises(UserError, match="finished on other samples or another frozen LDM"):
        training(path).finished()


@pytest.mark.parametrize("features", ["cached", "online"])
def test_another_frozen_ldm_of_the_same_name_is_told(
    path: Path, miniature_ldm: Path, precompute_here: Callable[..., None], tmp_path: Path, features: str
) -> None:
    ldm = Path(shutil.copytree(miniature_ldm, tmp_path / "ldm"))
    overrides = (f"ldm.source={ldm}", f"train.features={features}")
    precompute_here(path, *overrides)
    finish(training(path, *overrides), tmp_path / "model")
    assert training(path, *overrides).finished() is not None
    shutil.rmtree(ldm)
    other = MiniatureConfig(
        block_out_channels=(8, 8, 16, 16),
        attention_heads=2,
        norm_groups=4,
        context_width=16,
        text_layers=1,
        text_heads=2,
        vae_channels=(4, 4, 8, 8),
        vocabulary_size=600,
        seed=1,
    )
    build_miniature_ldm(ldm, config=other, phrases=["the red box"])
    precompute_here(path, *overrides)
    with pytest.raises(UserError, match="finished on other samples or another frozen LDM"):
        training(path, *overrides).finished()
