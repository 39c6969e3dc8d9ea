"""The comparison of a grid: means, intervals, the best, what is missing, and the three ways of laying it out."""

import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from pipeline.experiments.cell import Experiment, load_experiment
from pipeline.experiments.comparison import CellResult, Comparison, Spread, compare
from pipeline.experiments.comparison_page import render_page
from pipeline.experiments.comparison_table import cells_csv, markdown_table, rows_csv, terminal_table

Write = Callable[..., Path]
NOW = datetime(2025, 1, 2, 3, 4, tzinfo=UTC)


def results(experiment: Experiment, values: Sequence[float | None]) -> list[CellResult]:
    return [
        CellResult(
            cell=cell,
            training=f"training-{number}",
            run_id=f"run{number}",
            version=str(number + 1),
            step=4,
            figures=None
            if value is None
            else {"val/miou": value, "val/threshold": 0.3, "test/miou_at_val": value / 2},
            failure="loss became nan" if value is None else None,
        )
        for number, (cell, value) in enumerate(zip(experiment.cells, values, strict=True))
    ]


@pytest.fixture
def grid(small_recipe: Write) -> Experiment:
    return load_experiment(small_recipe(), ["fusion=cross_attention,concat", "seed=1,2,3"])


@pytest.fixture
def comparison(grid: Experiment) -> Comparison:
    return compare(grid, results(grid, [0.30, 0.32, 0.34, 0.5, None, 0.2]))


def test_the_interval_is_students() -> None:
    spread = Spread.of([0.30, 0.32, 0.34])
    # t(0.975, 2 degrees of freedom) = 4.3027
    half = 4.302653 * 0.02 / math.sqrt(3)
    assert spread.mean == pytest.approx(0.32)
    assert (spread.low, spread.high) == (pytest.approx(0.32 - half), pytest.approx(0.32 + half))
    assert Spread.of([0.4]) == Spread(values=(0.4,), mean=0.4, low=None, high=None)


def test_the_interval_holds_what_it_says() -> None:
    draws = np.random.default_rng(0).normal(0.5, 0.1, (2000, 4))
    spreads = [Spread.of(row.tolist()) for row in draws]
    covered = sum(one.low < 0.5 < one.high for one in spreads) / len(spreads)  # type: ignore[operator]
    assert 0.935 < covered < 0.965


def test_rows_group_seeds_and_the_best_is_by_the_mean(comparison: Comparison) -> None:
    first, second = comparison.rows
    assert (first.title, first.asked, first.done) == ("fusion=cross_attention", 3, 3)
    assert (second.asked, second.done) == (3, 2)
    assert second.figures["val/miou"].mean == pytest.approx(0.35)
    assert comparison.best_row is second
    assert comparison.best_cell is not None
    assert comparison.best_cell.cell.title == "fusion=concat seed=1"
    assert [one.cell.title for one in comparison.failed] == ["fusion=concat seed=2"]
    assert comparison.columns == {"val/miou": "val mIoU", "test/miou_at_val": "test mIoU @val"}


def test_lowest_is_best_where_the_recipe_says_so(small_recipe: Write) -> None:
    grid = load_experiment(small_recipe(), ["seed=1,2", "best_is=lowest"])
    best = compare(grid, results(grid, [0.3, 0.2])).best_cell
    assert best is not None
    assert best.cell.title == "seed=2"


def test_the_test_sets_never_choose(grid: Experiment) -> None:
    found = [
        CellResult(cell=cell, training="t", step=1, figures={"test/miou_at_0.3": number / 10})
        for number, cell in enumerate(grid.cells)
    ]
    comparison = compare(grid, found)
    assert comparison.best_row is comparison.best_cell is None
    assert "Best" not in terminal_table(comparison) + markdown_table(comparison)
    assert "<svg" not in render_page(comparison, created=NOW)


def test_text(comparison: Comparison) -> None:
    lines = terminal_table(comparison).splitlines()
    assert lines[0].split() == ["fusion", "seeds", "val", "mIoU", "test", "mIoU", "@val"]
    assert lines[1].split() == ["cross_attention", "3", "32.0", "±5.0", "16.0", "±2.5"]
    assert lines[2].split() == ["*", "concat", "2", "of", "3", "35.0", "±190.6", "17.5", "±95.3"]
    assert "Student's t 95 % interval" in lines[3]
    assert lines[-2:] == [
        "Best training: fusion=concat seed=1, val mIoU 50.0 (version 4): models/ldznet-concat-seed-1.",
        "Not trained: fusion=concat seed=2.",
    ]
    assert "| * | **concat** | **2 of 3** |" in markdown_table(comparison)


def test_csv(comparison: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(rows_csv(comparison))))
    assert [row["best"] for row in rows] == ["0", "1"]
    assert float(rows[0]["val/miou_mean"]) == pytest.approx(0.32)
    cells = list(csv.DictReader(io.StringIO(cells_csv(comparison))))
    assert [row["val/miou"] for row in cells] == ["0.3", "0.32", "0.34", "0.5", "", "0.2"]
    assert cells[4]["failure"] == "loss became nan"
    assert cells[0]["val/threshold"] == "0.3"


def test_the_page_is_self_contained(comparison: Comparison) -> None:
    page = render_page(comparison, created=NOW)
    assert not re.search(r"(?:src|href)=|<script", page)
    assert "<svg" in page
    assert page.count("loss became nan") == 1
    assert "27.0 to 37.0" in page
    assert "2 January 2025, 03:04 UTC" in page


def test_without_seeds_there_are_no_intervals(small_recipe: Write) -> None:
    grid = load_experiment(small_recipe(), ["lr=1e-3,1e-4"])
    comparison = compare(grid, results(grid, [0.3, 0.4]))
    text = terminal_table(comparison)
    assert "one training each, so no intervals over seeds" in text
    assert "±" not in text + markdown_table(comparison) + render_page(comparison, created=NOW)


def test_a_grid_of_which_nothing_was_trained(grid: Experiment) -> None:
    comparison = compare(grid, results(grid, [None] * 6))
    assert "0 of 3" in terminal_table(comparison)
    assert "val/miou" not in rows_csv(comparison)
    render_page(comparison, created=NOW)
