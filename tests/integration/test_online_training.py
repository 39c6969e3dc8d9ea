"""Training on features computed online: equal to training on the cache, to the bit, and possible without one."""

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from jobs import train
from jobs.local_ray import ray_session
from ldznet.errors import UserError
from pipeline.models.folder import download_model
from pipeline.object_store.opening import open_store
from pipeline.recipe_file import load_recipe
from pipeline.training import rank_training, ranks
from pipeline.training.cached_sets import CachedSets
from pipeline.training.checkpoint_store import CheckpointStore
from pipeline.training.observer import TrainingObserver

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 10  # two and a half epochs of 4 batches
CACHED: list[str] = []
FRESH = ["train.features=online"]
CYCLE = [*FRESH, "train.online_draws=cycle"]


@pytest.fixture(scope="module")
def cached(
    tmp_path_factory: pytest.TempPathFactory,
    small_recipe_in: Callable[..., Path],
    precompute_here: Callable[..., None],
) -> Path:
    folder = tmp_path_factory.mktemp("cached")
    options = {"batch_size": 8, "lr": 1e-3, "workers": 1, "engine": "ddp", "validate_every": 5}
    path = small_recipe_in(folder, train={"steps": STEPS, "checkpoint_every": 5, **options})
    precompute_here(path, "sets.train.draws=2")
    return path


class KilledHereError(Exception):
    """Ends a training where a checkpoint has just become visible."""


class Trained:
    """Losses by step, validations by step, and the weights kept."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.figures: dict[int, dict[str, float]] = {}
        self.weights: dict[str, torch.Tensor] = {}


@pytest.fixture
def train_here(cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trained]:
    """Trains in this process as a rank does; `name` is that of the folder of checkpoints."""

    def run(*overrides: str, name: str, killed_after: int | None = None) -> Trained:
        trained = Trained()

        class Told(TrainingObserver):
            def on_step(self, metrics: Mapping[str, float], *, step: int) -> None:
                trained.losses[step] = metrics["loss"]

            def on_validation(self, metrics: Mapping[str, float], *, step: int, best: bool) -> None:
                trained.figures[step] = dict(metrics)

            def on_checkpoint(self, location: str, *, step: int, seconds: float) -> None:
                if step == killed_after:
                    raise KilledHereError

        monkeypatch.setattr(rank_training, "TrainingObserver", Told)
        recipe = load_recipe(cached, ["sets.train.draws=2", *overrides])
        end = pytest.raises(KilledHereError) if killed_after else nullcontext()
        with ranks.process_group(), end:
            rank_training.train_on_this_rank(
                recipe,
                cached=CachedSets.find(recipe, open_store(recipe.cache.url)),
                checkpoints=CheckpointStore(open_store(tmp_path / name), keep=9),
                model_url=str(tmp_path / f"{name}-model"),
                run_id=None,
                metrics_owner="training",
            )
        if killed_after:
            return trained
        download_model(str(tmp_path / f"{name}-model"), tmp_path / f"{name}-best")
        trained.weights = load_file(tmp_path / f"{name}-best" / "model.safetensors")
        return trained

    return run


def assert_equal(ours: Trained, theirs: Trained) -> None:
    assert ours.losses == theirs.losses
    assert ours.figures == theirs.figures
    assert ours.weights.keys() == theirs.weights.keys()
    assert all(torch.equal(ours.weights[name], tensor) for name, tensor in theirs.weights.items())


@pytest.mark.slow
def test_cached_and_online_give_equal_losses_step_by_step_and_equal_weights(
    train_here: Callable[..., Trained], tmp_path: Path
) -> None:
    theirs = train_here(*CACHED, name="cached")
    assert list(theirs.losses) == list(range(1, STEPS + 1))
    assert theirs.losses[STEPS] < theirs.losses[1]
    assert_equal(train_here(*CYCLE, name="online"), theirs)
    nowhere = f"cache.url={tmp_path}/empty"  # validation runs online too
    assert_equal(train_here(*CYCLE, nowhere, name="no-cache"), theirs)
    fresh = train_here(*FRESH, name="fresh")
    first_epoch = range(1, 5)  # draw 0, in the cache's order; then draws and order are its own
    assert [fresh.losses[step] for step in first_epoch] == [theirs.losses[step] for step in first_epoch]
    assert all(fresh.losses[step] != theirs.losses[step] for step in range(5, STEPS + 1))


@pytest.mark.long  # `make test-cluster`
@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(CACHED, CYCLE), (CYCLE, CACHED)])
def test_a_training_goes_on_from_a_checkpoint_of_equal_draws_and_from_no_other(
    train_here: Callable[..., Trained], before: list[str], after: list[str]
) -> None:
    whole = train_here(*CACHED, name="whole")
    first = train_here(*before, name="killed", killed_after=5)
    with pytest.raises(UserError, match="made by another configuration"):
        train_here(*FRESH, name="killed")
    second = train_here(*after, name="killed")
    assert set(second.losses) == {6, 7, 8, 9, 10}
    assert first.losses | second.losses == whole.losses
    assert all(torch.equal(second.weights[name], tensor) for name, tensor in whole.weights.items())


@pytest.mark.long
@pytest.mark.slow
def test_without_a_cache_the_whole_command_trains_on_photos(
    small_recipe: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = small_recipe(train={"steps": 3, "batch_size": 8, "lr": 1e-3, "workers": 2, "validate_every": 2})
    caplog.set_level(logging.INFO)
    with ray_session(cpus=3):
        assert train.main([str(path), "train.features=online", "train.augment=[flip]"]) == 0
    assert (tmp_path / "run/models/ldznet/model.safetensors").is_file()
    card = (tmp_path / "run/models/ldznet/README.md").read_text()
    assert "online, computed in fp32" in card
    assert "fresh draws each epoch" in card
    assert not list(tmp_path.rglob("*.tar"))


def test_cached_features_that_are_not_there_are_asked_for(
    small_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([str(small_recipe())]) == 2
    told: Any = capsys.readouterr().err
    assert "run `ldznet precompute`" in told
