"""Two jobs that would train the same network or replace the same results do not run at once."""

from pathlib import Path

import pytest
from unit.jobs.submit_requests import request_of

from pipeline.recipe_file import load_recipe
from pipeline.training.rank_training import training_identity

LASTING = ["storage=s3://b/storage", "output=runs/{name}"]  # what lies in the output folder does not last


def test_which_jobs_clash(recipe: Path) -> None:
    train, evaluate, pipeline = (
        request_of(recipe, job=job).metadata for job in ("train", "evaluate", "pipeline")
    )
    changed = request_of(recipe, environment={"A": "1"})
    told = "runs on this recipe, with other code or options"
    assert changed.clash(train) == told
    assert changed.clash(pipeline) == told
    assert changed.clash(evaluate) is None
    assert changed.clash({}) is None


@pytest.mark.parametrize("running", ["train", "pipeline"])
@pytest.mark.parametrize(
    "override",
    [
        "train.workers=1",
        "train.zero_stage=1",
        "train.log_every=2",
        "train.validate_every=2",
        "train.cluster.placement=SPREAD",
        "evaluate.bootstrap=30",
        "cache.workers=2",
        "tracking.experiment=another",
        "output=runs/another",  # the checkpoints are in the storage
    ],
)
def test_what_changes_no_result_is_the_same_training(override: str, running: str, recipe: Path) -> None:
    asked = [*LASTING, override]
    first, second = load_recipe(recipe, LASTING), load_recipe(recipe, asked)
    assert training_identity(first) == training_identity(second)
    assert first.digest() != second.digest()
    other = request_of(recipe, *LASTING, job=running).metadata
    clash = request_of(recipe, *asked).clash(other)
    name = f"small-ldznet-{training_identity(first)}"
    assert clash == f"runs the same training, s3://b/storage/{name}"
    assert request_of(recipe, *asked, job="precompute").clash(other) is None


def test_other_trainings_run_beside_each_other(recipe: Path) -> None:
    running = request_of(recipe, *LASTING).metadata
    for override in (
        "train.seed=1",
        "train.steps=9",
        "network.kind=znet",
        "storage=s3://b/other",
        "name=other",
    ):
        assert request_of(recipe, *LASTING, override).clash(running) is None, override


def test_a_training_of_a_grid_is_not_trained_beside_it(recipe: Path) -> None:
    grid = request_of(recipe, *LASTING, "train.seed=1,2")
    single = request_of(recipe, *LASTING, "train.seed=2", "train.workers=1")
    other = request_of(recipe, *LASTING, "train.seed=2,3", "train.workers=1")
    apart = request_of(recipe, *LASTING, "train.seed=3,4")
    for one, another in ((grid, single), (single, grid), (grid, other)):
        assert (one.clash(another.metadata) or "").startswith("runs the same training, ")
    assert grid.clash(apart.metadata) is None


def test_one_storage_has_one_spelling(recipe: Path, tmp_path: Path) -> None:
    running = request_of(recipe, *LASTING, f"storage=file://{tmp_path}/storage/").metadata
    again = request_of(recipe, *LASTING, f"storage={tmp_path}/x/../storage", "train.workers=1")
    assert (again.clash(running) or "").startswith("runs the same training, ")


def test_trainings_that_go_on_from_another_need_no_weights_to_be_compared(recipe: Path) -> None:
    """There is no such model: what it holds, and where it is, does not matter."""
    start = "network.init_from=models:/small@best"
    running = request_of(recipe, *LASTING, start).metadata
    clash = request_of(recipe, *LASTING, start, "train.workers=1").clash(running)
    assert (clash or "").startswith("runs the same training, s3://b/storage/small-ldznet-adapted-from-any-")
    assert request_of(recipe, *LASTING, "network.init_from=models:/small/3").clash(running)
    assert not request_of(recipe, *LASTING, start, "train.seed=1").clash(running)
    assert not request_of(recipe, *LASTING).clash(running)


def test_results_in_a_folder_that_lasts_are_not_replaced_by_two(recipe: Path, tmp_path: Path) -> None:
    lasting = [*LASTING, f"output={tmp_path}/out"]
    pipeline, evaluate = (request_of(recipe, *lasting, job=job).metadata for job in ("pipeline", "evaluate"))
    seed = request_of(recipe, *lasting, "train.seed=1")
    assert (seed.clash(pipeline) or "").startswith(f"writes {tmp_path}/out/models/ldznet too (output=FOLDER ")
    assert seed.clash(evaluate) is None
    again = request_of(recipe, *lasting, "evaluate.bootstrap=30", job="evaluate")
    for running in (pipeline, evaluate):
        assert (again.clash(running) or "").startswith(f"writes {tmp_path}/out/evaluation.json too")
    elsewhere = request_of(recipe, *LASTING, f"output={tmp_path}/other", "train.seed=1")
    assert elsewhere.clash(pipeline) is None
    grid = request_of(recipe, *lasting, "train.seed=1,2")
    assert grid.clash(pipeline) is None  # its models have folders of their own
    longer = request_of(recipe, *lasting, "train.seed=1,2", "train.steps=9")
    assert "/models/ldznet-seed-1 too" in (longer.clash(grid.metadata) or "")


def test_the_same_training_has_the_same_id(recipe: Path) -> None:
    """So that of two at the same instant the cluster takes one."""
    names = [
        request_of(recipe, *LASTING, *more).submission_id(taken=[])
        for more in ([], ["train.workers=1"], ["train.seed=1"])
    ]
    assert names[0] == names[1] != names[2]
    assert request_of(recipe, job="evaluate").submission_id(taken=[]) != request_of(
        recipe, "evaluate.bootstrap=30", job="evaluate"
    ).submission_id(taken=[])
