"""What networks take: read from what a training logged, and measured on photos."""

import json
from collections.abc import Callable
from pathlib import Path

from ldznet.builtin_models import DEFAULT_MODEL, builtin_folder
from pipeline.recipe_file import load_recipe
from pipeline.results.times import photo_milliseconds, training_rate
from pipeline.tracking.tracker import Tracker
from pipeline.training.observer import TrainingObserver


def test_the_rate_is_the_median_but_for_the_first(small_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = load_recipe(small_recipe(), ["tracking.enabled=true"])
    with Tracker(recipe.tracking, folder=Path(recipe.output_folder)) as tracker:
        run_id = tracker.start(job="train")
        told = TrainingObserver(tracker=tracker, title="small")
        for step, rate in ((10, 1.0), (20, 20.0), (30, 40.0), (40, 21.0)):
            figures = {"loss": 0.5, "samples_per_second": rate, "data_wait_share": 0.0, "lr": 0.1}
            told.on_step({**figures, "grad_norm": 1.0, "epoch": 0.1}, step=step)
    (tmp_path / "provenance.json").write_text(json.dumps({"run_id": run_id}))
    assert training_rate(recipe, tmp_path) == 21.0


def test_a_photo_takes_some_time(small_recipe: Callable[..., Path]) -> None:
    folder = builtin_folder(DEFAULT_MODEL)
    assert folder is not None
    assert 0 < photo_milliseconds(folder, load_recipe(small_recipe()), set_name="val", photos=2) < 60_000
