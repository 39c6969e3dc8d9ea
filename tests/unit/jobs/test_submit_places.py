"""Folders of a recipe mean the same to a submitted job, or are refused."""

from pathlib import Path

import pytest

from jobs.submit_places import place_overrides, place_overrides_of_all
from jobs.submit_request import job_named
from ldznet.errors import UserError
from pipeline.recipe_file import load_recipe
from pipeline.tracking.client import sqlite_path

S3 = ["cache.url=s3://b/cache", "storage=s3://b/storage", "data.root=s3://b/data", "ldm.source=hub/model"]


def test_relative_folders_become_absolute_where_all_nodes_are_this_machine(recipe: Path) -> None:
    (recipe.parent / "models/mine").mkdir(parents=True)
    asked = load_recipe(
        recipe,
        [
            "cache.url=runs/cache",
            "output=runs/{name}",
            "data.root=s3://b/d",
            "evaluate.models=[models/mine,hub/clipseg]",
        ],
    )
    made = place_overrides(asked, folder=recipe.parent, here=True)
    placed = load_recipe(recipe, ["data.root=s3://b/d", *made])
    assert placed.cache.url == f"{recipe.parent}/runs/cache"
    assert placed.output_folder == f"{recipe.parent}/runs/small"
    assert [one.source for one in placed.evaluate.models] == [f"{recipe.parent}/models/mine", "hub/clipseg"]
    assert placed.data.root == "s3://b/d"
    assert placed.ldm.source == asked.ldm.source  # absolute before


def test_what_a_training_starts_from_and_its_tracking_become_absolute_too(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = recipe.parent
    for folder in ("runs/first/models/ldznet", "runs/ldm"):
        (project / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)  # a relative folder is the project's, wherever the submitter stands
    asked = load_recipe(
        recipe,
        [
            "network.init_from=runs/first/models/ldznet",
            "ldm.source=runs/ldm",
            "tracking.uri=sqlite:///runs/mlflow.db",
            "tracking.artifacts=runs/artifacts",
        ],
    )
    placed = load_recipe(recipe, place_overrides(asked, folder=project, here=True))
    assert placed.network.init_from == f"{project}/runs/first/models/ldznet"
    assert placed.ldm.source == f"{project}/runs/ldm"
    assert sqlite_path(str(placed.tracking.uri)) == project / "runs/mlflow.db"
    assert placed.tracking.artifacts == f"{project}/runs/artifacts"


@pytest.mark.parametrize(
    "override",
    [
        "network.init_from=random",
        "network.init_from=builtin:scenes-128-ldznet",
        "network.init_from=models:/small@best",
        "network.init_from=/srv/models/ldznet",
        "tracking.uri=http://mlflow:5000",
        "tracking.uri=sqlite:////srv/mlflow.db",
        "tracking.artifacts=s3://b/artifacts",
    ],
)
@pytest.mark.parametrize("here", [True, False])
def test_names_and_absolute_places_stay_as_they_are(here: bool, override: str, recipe: Path) -> None:
    asked = load_recipe(recipe, [*S3, "output=/srv/out", override])
    assert place_overrides(asked, folder=recipe.parent, here=here) == []


def test_a_grid_over_relative_folders_is_refused_where_their_meaning_changes(recipe: Path) -> None:
    (recipe.parent / "runs/first").mkdir(parents=True)
    for starts in (["ldm", "runs/first"], ["runs/first", "ldm"]):
        recipes = [
            load_recipe(recipe, [*S3, "output=/srv/out", f"network.init_from={one}"]) for one in starts
        ]
        with pytest.raises(
            UserError, match=rf"^network\.init_from has alternatives.*{recipe.parent}/runs/first"
        ):
            place_overrides_of_all(recipes, folder=recipe.parent, here=True)
        with pytest.raises(UserError, match=r"^network\.init_from=runs/first is a folder of this machine"):
            place_overrides_of_all(recipes, folder=recipe.parent, here=False)
    same = job_named("train").recipes(recipe, [*S3, "train.seed=1,2", "tracking.artifacts=runs/a"])
    made = place_overrides_of_all(same, folder=recipe.parent, here=True)
    assert made == [f"tracking.artifacts={recipe.parent}/runs/a"]


@pytest.mark.parametrize(
    ("override", "mend"),
    [
        ("network.init_from=runs/first", "network.init_from=models:/NAME@ALIAS"),
        ("ldm.source=runs/first", "a hub id"),
        ("evaluate.models=[runs/first]", r"evaluate.models\[0\]=models:/NAME@ALIAS"),
        ("tracking.uri=sqlite:///runs/mlflow.db", "tracking.uri=http://HOST:PORT"),
        ("tracking.artifacts=runs/artifacts", "tracking.artifacts=s3://BUCKET/artifacts"),
    ],
)
def test_elsewhere_each_has_a_mend_of_its_own(override: str, mend: str, recipe: Path) -> None:
    (recipe.parent / "runs/first").mkdir(parents=True)
    asked = load_recipe(recipe, [*S3, "output=/srv/out", override])
    with pytest.raises(UserError, match=rf"is a folder of this machine, .* others: give .*{mend}"):
        place_overrides(asked, folder=recipe.parent, here=False)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("cache.url=runs/cache", "cache.url"),
        ("data.root=runs/data", "data.root"),
        ("storage=runs/x", "storage"),
    ],
)
def test_elsewhere_a_relative_folder_is_refused(override: str, key: str, recipe: Path) -> None:
    asked = load_recipe(recipe, [*S3, override])
    with pytest.raises(UserError, match=rf"^{key}=runs/\w+ is a folder of this machine.*{key}=s3://BUCKET/"):
        place_overrides(asked, folder=recipe.parent, here=False)


def test_elsewhere_reports_may_stay_in_the_jobs_folder_where_models_do_not(recipe: Path) -> None:
    assert (
        place_overrides(load_recipe(recipe, [*S3, "output=runs/x"]), folder=recipe.parent, here=False) == []
    )
    with pytest.raises(UserError, match=r"^output=runs/x is a folder of this machine"):
        place_overrides(
            load_recipe(recipe, [*S3, "output=runs/x", "storage=null"]), folder=recipe.parent, here=False
        )
