"""What is sent to a cluster: an identity, an entrypoint, nothing secret."""

from pathlib import Path

import pytest
from unit.jobs.submit_requests import request_of

from jobs.submit_request import IDENTITY, RECIPE_JOBS, job_named, make_request
from ldznet.errors import UserError
from pipeline.recipe_file import load_recipe


def test_the_entrypoint_is_what_ray_job_submit_takes(recipe: Path) -> None:
    request = request_of(recipe, "train.steps=9", "evaluate.sets=[val]")
    assert request.entrypoint == "python -m jobs.train mine.yaml train.steps=9 'evaluate.sets=[val]'"
    assert set(request.package.files) == {"code.py", "mine.yaml"}


def test_a_recipe_outside_the_folder_goes_along(recipe: Path, project: Path, tmp_path: Path) -> None:
    other = recipe.rename(tmp_path / "other.yaml")
    request = make_request(
        "train",
        [load_recipe(other)],
        path=other,
        overrides=[],
        flags=[],
        folder=project,
        environment={},
        secrets={},
    )
    assert request.words[3] == "submitted/other.yaml"
    assert request.package.files["submitted/other.yaml"] == other


def test_identity_follows_from_words_files_and_variables(recipe: Path, project: Path) -> None:
    first = request_of(recipe)
    same = request_of(recipe)
    assert first.metadata == same.metadata
    others = [request_of(recipe, "train.steps=9"), request_of(recipe, environment={"A": "1"})]
    (project / "code.py").write_text("2")
    others.append(request_of(recipe))
    assert len({first.metadata[IDENTITY], *(one.metadata[IDENTITY] for one in others)}) == 4
    assert first.is_identical(same.metadata)
    assert not first.is_identical(others[2].metadata)


def test_ids_are_counted_on(recipe: Path) -> None:
    request = request_of(recipe)
    first = request.submission_id(taken=[])
    assert first.startswith("train-small-")
    assert request.submission_id(taken=[first]) == f"{first}-2"
    assert request.submission_id(taken=[first, f"{first}-2", "another"]) == f"{first}-3"


@pytest.mark.parametrize(
    "override", ["data.name=tiger-tiger", "cache.url=s3://b/tiger-tiger/x", "cache.url=s3://me:word@b/cache"]
)
def test_a_recipe_with_a_credential_is_refused(override: str, recipe: Path) -> None:
    with pytest.raises(UserError, match=r"(data\.name|cache\.url) holds a credential") as refused:
        request_of(recipe, override)
    assert "tiger" not in str(refused.value)
    assert "word" not in str(refused.value)


def test_an_override_that_another_replaces_is_looked_at_too(recipe: Path) -> None:
    with pytest.raises(UserError, match="an override holds a credential"):
        request_of(recipe, "data.name=tiger-tiger", "data.name=tame")


def test_of_variables_only_names_are_told(recipe: Path) -> None:
    told = request_of(recipe, environment={"MODE": "quick-and-dirty"}).describe()
    assert "MODE, LDZNET_SUBMISSION" in told
    assert "quick-and-dirty" not in told


def test_every_job_on_a_recipe_can_be_submitted() -> None:
    for name in RECIPE_JOBS:
        assert job_named(name).name == name
    with pytest.raises(UserError, match="there is no job 'serve' to submit: there are pipeline, "):
        job_named("serve")


def test_a_grid_goes_as_it_was_written(recipe: Path) -> None:
    one, two = request_of(recipe, "train.seed=1,2"), request_of(recipe, "train.seed=1,2,3")
    assert one.words[-1] == "train.seed=1,2"
    assert one.metadata["ldznet.recipe_digest"] != two.metadata["ldznet.recipe_digest"]
