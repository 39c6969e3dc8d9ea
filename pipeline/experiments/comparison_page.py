"""A grid's comparison as one HTML page. Self-contained: no script, no link outward."""

from dataclasses import dataclass
from datetime import datetime
from itertools import groupby, pairwise
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ldznet.score_results import Score
from pipeline import report
from pipeline.experiments.comparison import Comparison, Row, Spread
from pipeline.experiments.comparison_table import best_lines, seeds_text
from pipeline.pictures import SERIES
from pipeline.report.charts import interval_chart
from pipeline.tracking.redaction import redacted_text

_TEMPLATE = "comparison.html.j2"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cell:
    value: str
    interval: str = ""
    best: bool = False


def render_page(comparison: Comparison, *, created: datetime) -> str:
    """The page: a chart of what chose the best, the table, and every training."""
    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, Path(report.__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["seeds"] = seeds_text
    done = len(comparison.cells) - len(comparison.failed)
    page = environment.get_template(_TEMPLATE).render(
        title=comparison.name,
        series_colours=len(SERIES),
        lede=f"{_counted(len(comparison.rows), 'configuration')}, {_counted(len(comparison.cells), 'training')}"
        + ("." if done == len(comparison.cells) else f", {done} of them finished."),
        best=best_lines(comparison),
        best_row=comparison.best_row,
        best_cell=comparison.best_cell,
        chart=_chart(comparison),
        chosen=comparison.columns.get(comparison.chosen_by, comparison.chosen_by),
        keys=[key.rpartition(".")[2] for key in comparison.keys],
        cell_keys=[key.rpartition(".")[2] for key, _ in comparison.cells[0].cell.choices],
        names=list(comparison.columns),
        groups=[(place, len(list(found))) for place, found in groupby(comparison.columns, key=_place)],
        columns=list(zip(*_heads(comparison), strict=True)),
        rows=[(row, _cells(row, comparison)) for row in comparison.rows],
        cells=comparison.cells,
        note=comparison.note,
        footer=f"{created:%d %B %Y, %H:%M} UTC".lstrip("0"),
    )
    return redacted_text(page)


def _place(name: str) -> str:
    return name.partition("/")[0]


def _heads(comparison: Comparison) -> tuple[list[str], list[bool]]:
    """Titles without the set, which stands above them, and whether a set's columns begin."""
    places = [_place(name) for name in comparison.columns]
    titles = [
        title.removeprefix(f"{place} ")
        for place, title in zip(places, comparison.columns.values(), strict=True)
    ]
    return titles, [place != before for before, place in pairwise(["", *places])]


def _chart(comparison: Comparison) -> Markup | None:
    drawn = [
        (row.title, row.figures[comparison.chosen_by])
        for row in comparison.rows
        if comparison.chosen_by in row.figures
    ]
    if not drawn or comparison.chosen_by not in comparison.columns:
        return None
    label = "%" if not comparison.has_seeds else "%; dot: mean, bar: its 95 % interval, ticks: seeds"
    points = [spread.values if len(spread.values) > 1 else () for _, spread in drawn]
    chart = interval_chart(
        [(title, _score(spread)) for title, spread in drawn], label=label, points=points, from_zero=False
    )
    return Markup(chart)  # noqa: S704 - our own SVG


def _score(spread: Spread) -> Score:
    """Within what the figure can be: an interval of few seeds may reach beyond."""
    if spread.low is None or spread.high is None:
        return Score(value=spread.mean)
    return Score(value=spread.mean, low=max(0.0, spread.low), high=min(1.0, spread.high))


def _cells(row: Row, comparison: Comparison) -> list[_Cell]:
    cells = []
    for name in comparison.columns:
        spread = row.figures.get(name)
        if spread is None:
            cells.append(_Cell(value="-"))
            continue
        means = [other.figures[name].mean for other in comparison.rows if name in other.figures]
        interval = (
            f"{100 * spread.low:.1f} to {100 * spread.high:.1f}"
            if spread.low is not None and spread.high is not None
            else ""
        )
        best = len(means) > 1 and spread.mean == max(means)
        cells.append(_Cell(value=f"{100 * spread.mean:.1f}", interval=interval, best=best))
    return cells


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"
