"""`ldznet plan`: a table for people, JSON for machines, and one line for a mistake."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main

PRICES = ("plan.prices.storage_gb_month=0.023", "plan.prices.put_1000=0.005", "plan.prices.cpu_hour=0.05")


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What the command prints."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        assert main(["plan", *map(str, arguments)]) == 0
        return capsys.readouterr().out

    return run


def test_the_table_has_every_figure_with_its_unit(
    small_recipe: Callable[..., Path], shown: Callable[..., str]
) -> None:
    text = shown(small_recipe(), "--seconds", "1", *PRICES, "plan.samples_per_second=100")
    rows = {line[:34].strip(): line[34:].split() for line in text.splitlines()}
    assert rows["members (samples x draws)"] == ["144", "9", "153"]
    assert rows["PRECOMPUTE"] == ["train", "val", "all"]
    assert rows["TIME, in steady state"][:4] == ["time", "CPU", "worker", "hours"]
    assert {"1 worker", "8 workers", "64 workers"} <= set(rows)
    assert rows["samples a second and rank"] == ["100"]
    assert rows["bandwidth a rank needs"][1] == "MB/s"
    assert rows["caching pays after, early stop"][1] == "epochs"
    assert rows["COST"] == ["USD"]
    assert "storage for 1 month" in rows
    assert "egress an epoch of training" not in rows  # no price, no cost
    assert "measured in" in text
    assert "on the CPU: " in text
    assert max(map(len, text.splitlines())) <= 120


def test_what_is_too_slow_is_extrapolated_and_said(
    small_recipe: Callable[..., Path], shown: Callable[..., str]
) -> None:
    text = shown(small_recipe(), "--seconds", "0.0001")
    slow = "too slow to be timed in whole batches, extrapolated from batches of 1 and 2: "
    assert f"{slow}UNet, VAE, text encoder, whole UNet\n" in text
    assert "give plan.samples_per_second" in text  # no time for a training step


def test_json_holds_the_same_and_nothing_else(
    small_recipe: Callable[..., Path], shown: Callable[..., str], tmp_path: Path
) -> None:
    path = small_recipe()
    told: dict[str, Any] = json.loads(shown(path, "--json", "--no-calibrate", "cache.workers=3"))
    assert [one["members"] for one in told["sets"]] == [144, 9]
    assert told["measured"] is None
    assert told["training"]["samples"] == 36  # an epoch reads one of four draws
    assert not (tmp_path / "cache").exists()


def test_overrides_may_stand_before_and_after_options(
    small_recipe: Callable[..., Path], shown: Callable[..., str]
) -> None:
    told = json.loads(shown(small_recipe(), "sets.train.draws=1", "--json", "--no-calibrate", "data.limit=6"))
    assert [one["members"] for one in told["sets"]] == [6, 6]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "plan.prices.storage_gb=0.02",
            "unknown key 'plan.prices.storage_gb': did you mean 'storage_gb_month'?",
        ),
        ("plan.prices.gpu_hour=cheap", "plan.prices.gpu_hour: "),
        ("plan.prices.put_1000=-1", "plan.prices.put_1000: "),
        ("plan.workers=[0]", "plan.workers.0: "),
        ("data.root=nowhere/at/all", "nowhere/at/all"),
        ("ldm.source=nowhere/at/all", "nowhere/at/all"),
        ("sets.train.split=tarin", "tarin"),
    ],
)
def test_a_mistake_is_one_line(
    small_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str], override: str, told: str
) -> None:
    assert main(["plan", str(small_recipe()), override]) == 2
    text = capsys.readouterr()
    assert text.out == ""
    (line,) = [one for one in text.err.splitlines() if one.startswith("ldznet: ")]
    assert told in line


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_the_time_must_be_a_number(
    small_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str], seconds: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["plan", str(small_recipe()), f"--seconds={seconds}"])
    assert end.value.code == 2
    assert "--seconds" in capsys.readouterr().err
