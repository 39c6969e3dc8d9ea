"""A grid's results: what its trainings left, and figures of whoever scores their models."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ldznet.scores import SegmentationScores
from pipeline.evaluation.run import Evaluation, Result
from pipeline.experiments.cell import load_experiment
from pipeline.experiments.run import GridRun
from pipeline.object_store.opening import open_store
from pipeline.recipe import Recipe, SystemConfig
from pipeline.training.run import FINISHED_RECORD, FinishedTraining

HELD = "sets.held={split: val, view: {size: 64}, prompts: ['{}.']}"


def finished_grid(path: Path) -> GridRun:
    """Two trainings of three are finished."""
    experiment = load_experiment(path, ["seed=1,2,3", HELD, "evaluate.sets=[held]", "evaluate.device=gpu"])
    grid = GridRun(experiment)
    left = FinishedTraining(facts={"step": 4, "miou": 0.5}, run_id=None, version=None, patience=None)
    for cell in experiment.cells[:2]:
        training = grid.training(cell)
        store = open_store(f"{training.storage}/{training.name}")
        store.put("model/model.json", b"{}")
        store.put(FINISHED_RECORD, left.model_dump_json().encode())
    return grid


def result(model: str) -> Result:
    counted = SegmentationScores()
    counted.update(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
    given: dict[str, Any] = {
        "kind": "ldznet", "parameters": 1, "set_name": "held", "data_set": "boxes", "split": "val",
        "protocol": "clipseg", "manifest_id": "m", "seconds_per_sample": 0.1,
    }  # fmt: skip
    return Result(model=model, scores=counted.compute(resamples=0), **given)


def test_models_are_scored_by_what_is_handed_in(small_recipe: Callable[..., Path]) -> None:
    """So that a job scores them where it is quick, on the sets that are neither trained nor chosen on."""
    grid, asked = finished_grid(small_recipe()), []

    def score(recipe: Recipe, systems: Sequence[SystemConfig]) -> Evaluation:
        asked.append((recipe.evaluate, [Path(one.source).name for one in systems]))
        return Evaluation(results=[result(str(one.name)) for one in systems])

    first, second, third = grid.results({}, score=score)
    ((config, models),) = asked
    assert (config.sets, config.device, config.bootstrap, config.examples) == (("held",), "gpu", 0, 0)
    assert models == ["ldznet-seed-1", "ldznet-seed-2"]
    for one in (first, second):
        assert one.figures is not None
        assert one.figures["val/miou"] == 0.5
        assert "held/ap" in one.figures
    assert third.figures is None


def test_without_it_they_have_the_figures_of_their_validation(small_recipe: Callable[..., Path]) -> None:
    first, *_ = finished_grid(small_recipe()).results({})
    assert first.figures == {"val/miou": 0.5}
