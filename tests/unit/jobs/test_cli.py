"""The command line: quick help, and one line for a misspelt command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import cli

HEAVY = (
    "torch",
    "ray",
    "boto3",
    "diffusers",
    "transformers",
    "deepspeed",
    "mlflow",
    "webdataset",
    "numpy",
    "PIL",
)

ASK_ALL_FOR_HELP = """
import contextlib, io, json, sys
from jobs import cli
shown = {}
for command in ["", *cli.COMMANDS]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        cli.main([command, "--help"] if command else ["--help"])
    shown[command] = text.getvalue()
print(json.dumps({"shown": shown, "modules": sorted(sys.modules)}))
"""


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK_ALL_FOR_HELP], capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout)
    assert set(told["modules"]).isdisjoint(HEAVY)
    assert all(text.startswith("usage: ldznet") for text in told["shown"].values())
    assert all(command in told["shown"][""] for command in cli.COMMANDS)


def test_it_is_installed_as_a_program() -> None:
    program = Path(sys.executable).with_name("ldznet")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ldznet ")


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([])
    assert end.value.code == 0
    assert "usage: ldznet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("precomptue", "there is no command 'precomptue': did you mean 'precompute'?"),
        ("Train", "there is no command 'Train': did you mean 'train'?"),
        ("evalute", "there is no command 'evalute': did you mean 'evaluate'?"),
        ("dance", "there is no command 'dance': there are demo, "),
    ],
)
def test_a_misspelt_command_is_one_line(word: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([word, "recipe.yaml"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"ldznet: {told}")
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize("command", ["precompute", "train", "evaluate", "scenes", "miniature"])
def test_a_job_without_a_recipe_says_what_it_needs(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([command])
    assert end.value.code == 2
    assert f"ldznet {command}: error: the following arguments are required: recipe" in capsys.readouterr().err
