"""What one rank does besides the loop: the frozen LDM compared, predictions that are no numbers told."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from unit.pipeline.training.training_toy import toy_batch

from ldznet.errors import UserError
from ldznet.ldm_folder import ldm_digest
from pipeline.loading.batch import Batch
from pipeline.loading.sample_order import Position
from pipeline.recipe_file import load_recipe
from pipeline.tracking.config import TrackingConfig
from pipeline.tracking.tracker import Tracker
from pipeline.training.divergence import NonFinitePredictionError
from pipeline.training.rank_training import TrainingSource, Validator, check_same_ldm


class OneBatch:
    """A validation set."""

    def __len__(self) -> int:
        return 1

    def epoch(self, position: Position) -> list[Batch]:
        named = {"label_id": "0", "image_id": "0", "image_digest": "0", "phrase": "the red box"}
        return [replace(toy_batch(0, 4), facts=(named,) * 4)]


class Network:
    """An engine as far as a validator knows it."""

    step = 7

    def __init__(self, broken: tuple[int, ...]) -> None:
        self._broken = broken

    def predict(self, batch: Batch) -> Tensor:
        logits = torch.zeros(batch.masks.shape)
        logits[list(self._broken), 0, 0, 0] = float("nan")
        return logits


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker(TrackingConfig(enabled=False), folder=tmp_path)


def test_predictions_that_are_no_numbers_name_their_samples(tracker: Tracker) -> None:
    keys = toy_batch(0, 4).keys
    with pytest.raises(NonFinitePredictionError, match="after step 7 is not finite") as caught:
        Validator(OneBatch(), tracker=tracker)(Network(broken=(1, 3)))  # type: ignore[arg-type]
    assert caught.value.keys == (keys[1], keys[3])
    figures = Validator(OneBatch(), tracker=tracker)(Network(broken=()))  # type: ignore[arg-type]
    assert set(figures) == {"miou", "threshold", "iou_fg", "ap"}


def test_features_of_another_ldm_are_told(
    small_recipe: Callable[..., Path], miniature_ldm: Path, tmp_path: Path
) -> None:
    ldm = Path(shutil.copytree(miniature_ldm, tmp_path / "ldm"))
    recipe = load_recipe(small_recipe(), [f"ldm.source={ldm}"])
    source = TrainingSource(batches=OneBatch(), order_digest="", manifest=None, ldm_digest=ldm_digest(ldm))  # type: ignore[arg-type]
    check_same_ldm(recipe, source)
    weights = ldm / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match="is another LDM now than the one that computed the cached features"):
        check_same_ldm(recipe, source)
