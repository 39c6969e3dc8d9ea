"""`ldznet submit`: mistakes are told before any cluster is asked; without one, which."""

from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.submit import main
from jobs.submit_cluster import ADDRESS_VARIABLES, FollowedLog
from jobs.submit_request import RECIPE_JOBS


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ADDRESS_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["dance", "RECIPE"], "there is no job 'dance' to submit"),
        (["train", "RECIPE", "train.stepps=1"], "unknown key 'train.stepps': did you mean 'steps'?"),
        (["train", "RECIPE", "--repair"], "train has no flag --repair: "),
        (["precompute", "RECIPE", "--repairs"], "precompute has no flag --repairs: it has --repair"),
        (["train", "RECIPE", "--env", "HF_TOKEN=abc"], "--env HF_TOKEN: it looks like a credential"),
        (["train", "RECIPE", "--working-dir", "nowhere"], "there is no such folder"),
        (
            ["train", "RECIPE"],
            "which cluster? Give --address http://HOST:8265, or set RAY_API_SERVER_ADDRESS",
        ),
        (["--status"], "which cluster?"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], told: str, small_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(small_recipe())
    assert main([recipe if word == "RECIPE" else word for word in words]) == 2
    shown = capsys.readouterr()
    assert told in shown.err
    assert (shown.err.count("\n"), shown.out) == (1, "")


def test_the_help_names_every_job(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    words = set(capsys.readouterr().out.replace(",", " ").split())
    assert set(RECIPE_JOBS) <= words


def test_a_recipe_or_an_id_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train"])
    assert end.value.code == 2
    assert "a job and a recipe are required, or --attach" in capsys.readouterr().err


def test_nobody_answers(small_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(small_recipe()), "--address", "http://127.0.0.1:9"]) == 2
    assert "no Ray cluster answers at http://127.0.0.1:9" in capsys.readouterr().err


def test_a_log_told_again_from_its_beginning_is_said_once() -> None:
    said: list[str] = []
    log = FollowedLog(said.append)
    for parts in (["one\n", "two\n"], ["one\ntw", "o\nthr"], ["one\n", "two\nthree\n"]):
        log.rewind()
        for part in parts:
            log.add(part)
    assert "".join(said) == "one\ntwo\nthree\n"
