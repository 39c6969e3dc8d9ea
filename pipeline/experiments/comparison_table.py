"""A grid's comparison as text for a terminal, as Markdown, and as CSV."""

import csv
import io
from collections.abc import Iterable, Sequence
from textwrap import fill

from pipeline.experiments.comparison import CellResult, Comparison, Row, Spread

BEST_MARK = "*"
_TERMINAL_WIDTH = 118


def terminal_table(comparison: Comparison) -> str:
    """The rows, aligned, the best marked; how to read them, and what is missing."""
    rows = [[cell.replace("**", "") for cell in cells] for cells in _cells(comparison)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    told = [comparison.note, *best_lines(comparison), *_missing(comparison)]
    return "\n".join([*lines, *(fill(line, _TERMINAL_WIDTH, break_on_hyphens=False) for line in told)])


def markdown_table(comparison: Comparison) -> str:
    """The same for a text on a page, the best row in bold."""
    head, *body = _cells(comparison)
    lines = [_bars(head), "|" + "---|" * len(head), *map(_bars, body)]
    told = [*best_lines(comparison), *_missing(comparison), comparison.note]
    return "\n".join(lines) + "\n\n" + "\n\n".join(told) + "\n"


def rows_csv(comparison: Comparison) -> str:
    """One line a configuration; figures as shares in [0, 1]."""
    head = [*comparison.keys, "best", "seeds", "finished"]
    for name in comparison.columns:
        head += [f"{name}_mean", f"{name}_low", f"{name}_high"]
    lines = []
    for row in comparison.rows:
        line = [*(value for _, value in row.choices), int(row is comparison.best_row), row.asked, row.done]
        for name in comparison.columns:
            spread = row.figures.get(name)
            line += [spread.mean, spread.low, spread.high] if spread else ["", "", ""]
        lines.append(line)
    return _csv([head, *lines])


def cells_csv(comparison: Comparison) -> str:
    """One line a training; figures as shares in [0, 1]."""
    keys = [key for key, _ in comparison.cells[0].cell.choices]
    names = [*comparison.columns, *(["val/threshold"] if _has_threshold(comparison.cells) else [])]
    facts = ["training", "run_id", "version", "step"]
    lines = [
        [
            *(value for _, value in one.cell.choices),
            *(getattr(one, fact) for fact in facts),
            *((one.figures or {}).get(name, "") for name in names),
            one.failure or "",
        ]
        for one in comparison.cells
    ]
    return _csv([[*keys, *facts, *names, "failure"], *lines])


def spread_text(spread: Spread | None) -> str:
    """`31.2 ±1.4` in percent; without an interval the mean alone."""
    if spread is None:
        return "-"
    text = f"{100 * spread.mean:.1f}"
    return text if spread.high is None else f"{text} ±{100 * (spread.high - spread.mean):.1f}"


def seeds_text(row: Row) -> str:
    """`3`, or `2 of 3` where some are missing."""
    return str(row.asked) if row.done == row.asked else f"{row.done} of {row.asked}"


def best_lines(comparison: Comparison) -> list[str]:
    """Which training is the best of all, and where its model is."""
    best = comparison.best_cell
    if best is None:
        return []
    title = comparison.columns.get(comparison.chosen_by, comparison.chosen_by)
    value = (best.figures or {})[comparison.chosen_by]
    where = f" (version {best.version})" if best.version else ""
    return [f"Best training: {best.cell.title}, {title} {100 * value:.1f}{where}: models/{best.cell.label}."]


def _cells(comparison: Comparison) -> list[list[str]]:
    keys = [key.rpartition(".")[2] for key in comparison.keys]
    rows = [["", *keys, "seeds", *comparison.columns.values()]]
    for row in comparison.rows:
        best = row is comparison.best_row
        texts = [value for _, value in row.choices]
        texts += [seeds_text(row), *(spread_text(row.figures.get(name)) for name in comparison.columns)]
        rows.append([BEST_MARK if best else "", *(f"**{text}**" if best else text for text in texts)])
    return rows


def _missing(comparison: Comparison) -> list[str]:
    failed = comparison.failed
    return [f"Not trained: {', '.join(one.cell.title for one in failed)}."] if failed else []


def _has_threshold(cells: Iterable[CellResult]) -> bool:
    return any("val/threshold" in (one.figures or {}) for one in cells)


def _bars(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _csv(lines: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
