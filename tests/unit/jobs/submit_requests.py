"""What is sent to a cluster, put together as `ldznet submit` does."""

from pathlib import Path

from jobs.submit_request import JobRequest, job_named, make_request


def request_of(
    recipe: Path, *overrides: str, job: str = "train", environment: dict[str, str] | None = None
) -> JobRequest:
    return make_request(
        job,
        job_named(job).recipes(recipe, overrides),
        path=recipe,
        overrides=overrides,
        flags=[],
        folder=recipe.parent,
        environment=environment or {},
        secrets={"MY_PASSWORD": "tiger-tiger"},
    )
