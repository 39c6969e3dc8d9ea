"""One policy for errors, exit codes and logging, for every job."""

import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.entry import configure_logging, exit_code_of, recipe_job
from jobs.progress import progress_bar
from jobs.train_ranks import _is_fatal
from ldznet.errors import UserError
from pipeline.cache.sample_reading import CorruptSampleError
from pipeline.recipe import Recipe
from pipeline.training.checkpoint import IncompleteCheckpointError


@pytest.fixture(autouse=True)
def _levels() -> Iterator[None]:
    rooms = [logging.getLogger(name) for name in ("", "ldznet", "pipeline", "jobs")]
    before = [room.level for room in rooms]
    yield
    for room, level in zip(rooms, before, strict=True):
        room.setLevel(level)


def raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def test_done_is_zero() -> None:
    assert exit_code_of(lambda: None) == 0


def test_the_users_mistake_is_one_line_and_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(raising(UserError("no folder\n  there: make one"))) == 2
    assert capsys.readouterr().err == "ldznet: no folder there: make one\n"


@pytest.mark.parametrize(
    "error",
    [
        CorruptSampleError("sample a in s3://b/c\nis damaged: mend it"),
        IncompleteCheckpointError("sample a in s3://b/c is damaged: mend it"),
    ],
)
def test_what_no_retry_mends_is_one_line_and_one(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(raising(pickle.loads(pickle.dumps(error)))) == 1
    assert capsys.readouterr().err == "ldznet: sample a in s3://b/c is damaged: mend it\n"
    assert _is_fatal(error)


def test_an_interruption_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "ldznet: stopped\n"


def test_anything_else_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code_of(raising(ZeroDivisionError()))


@pytest.mark.parametrize(
    ("asked", "level"), [("debug", logging.DEBUG), ("ERROR", logging.ERROR), ("x", logging.INFO)]
)
def test_the_environment_sets_the_level(asked: str, level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDZNET_LOG", asked)
    configure_logging()
    assert logging.getLogger("pipeline.loading.loader").getEffectiveLevel() == level
    assert logging.getLogger("botocore").getEffectiveLevel() == logging.WARNING


def test_a_job_gets_the_recipe_with_its_overrides(small_recipe: Callable[..., Path]) -> None:
    seen: list[Recipe] = []

    def probe(recipe: Recipe) -> None:
        seen.append(recipe)

    main = recipe_job("probe")(probe)
    assert main([str(small_recipe()), "train.steps=9", "cache.workers=3"]) == 0
    assert (seen[0].train.steps, seen[0].cache.workers) == (9, 3)


def test_progress_is_quiet_where_there_is_no_terminal(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    now = 0.0
    monkeypatch.setattr("jobs.progress.time.monotonic", lambda: now)
    with progress_bar("work", total=100, unit="samples") as advance:
        for _ in range(10):
            now += 6
            advance(10)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "work: 30 of 100 samples, 42 s left",
        "work: 60 of 100 samples, 24 s left",
        "work: 90 of 100 samples, 6 s left",
    ]
    assert capfd.readouterr() == ("", "")
