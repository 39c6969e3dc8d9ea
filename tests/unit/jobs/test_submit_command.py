"""`ldznet submit`: mistakes are told before any cluster is asked; without one, which."""

from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.submit import main
from jobs.submit_door import ADDRESS_VARIABLES
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


@pytest.mark.parametrize(
    ("address", "why"),
    [
        (["--address", "http://127.0.0.1:9"], "no Ray cluster answers at http://127.0.0.1:9"),
        ([], "which cluster? Give --address"),
    ],
)
def test_a_dry_run_needs_no_cluster(
    address: list[str],
    why: str,
    small_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = small_recipe()
    project = tmp_path / "project"
    (project / "photos").mkdir(parents=True)
    (project / "photos/one.png").write_bytes(bytes(3 << 20))
    (project / "code.py").write_text("1")
    words = ["train", str(recipe), "cache.url=runs/cache", "--working-dir", str(project), "--dry-run"]
    assert main([*words, *address]) == 0
    told = capsys.readouterr().out
    lines = dict(line.split(maxsplit=1) for line in told.splitlines())
    assert "nothing was, and no cluster was asked: " + why in lines["would"]
    assert lines["entrypoint"] == "python -m jobs.train submitted/recipe.yaml cache.url=runs/cache"
    assert lines["largest"].startswith("photos/one.png 3.0 MiB, ")
    assert told.splitlines()[-1] == (
        "not known: whether all nodes are this machine. Then relative folders are its own, else they are refused: "
        "cache.url=runs/cache"
    )


def test_a_dry_run_tells_mistakes_without_a_cluster(
    small_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(small_recipe()), "--dry-run", "--repair"]) == 2
    assert "train has no flag --repair" in capsys.readouterr().err
