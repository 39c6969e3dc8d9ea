"""A number of workers, or a range."""

import pytest
from pydantic import ValidationError

from ldznet.config import Config
from pipeline.worker_count import WorkerCount, WorkersConfig, most_workers


class Job(Config):
    workers: WorkerCount = 1


def test_an_integer_stays_one() -> None:
    assert Job().workers == 1
    assert Job.model_validate({"workers": 7}).model_dump(mode="json") == {"workers": 7}
    assert most_workers(7) == 7


def test_a_range_comes_back_as_it_was() -> None:
    job = Job.model_validate({"workers": {"max": 9}})
    assert job.workers == WorkersConfig(min=1, max=9)
    assert Job.model_validate(job.model_dump(mode="json")) == job
    assert most_workers(job.workers) == 9


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (0, "greater than or equal to 1"),
        ("many", "valid integer"),
        ({"min": 3, "max": 2}, "min=3 is above max=2"),
        ({"min": 3}, "max"),
        ({"max": 3, "mim": 1}, "mim"),
    ],
)
def test_what_is_neither_is_refused(wrong: object, says: str) -> None:
    with pytest.raises(ValidationError, match=says) as refused:
        Job.model_validate({"workers": wrong})
    assert refused.value.error_count() == 1  # of the one form that was meant
