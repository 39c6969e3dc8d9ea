"""What a grid's cells came to, compared: one row a configuration, mean and 95 % interval over its seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Final

from pipeline.evaluation.run import Evaluation
from pipeline.experiments.cell import Cell, Choices, Experiment, title_of

LEVEL: Final = 0.95
_VALIDATION: Final = {"miou": "mIoU", "iou_fg": "IoU_FG", "ap": "AP"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """One figure of one configuration: the values of its seeds, their mean, and Student's t interval of the mean."""

    values: tuple[float, ...]
    mean: float
    low: float | None  # None: of one seed there is no interval
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        mean = fmean(values)
        if len(values) < 2:
            return cls(values=tuple(values), mean=mean, low=None, high=None)
        from scipy.stats import t

        quantile = float(t.ppf((1 + LEVEL) / 2, len(values) - 1))
        half = quantile * stdev(values) / math.sqrt(len(values))
        return cls(values=tuple(values), mean=mean, low=mean - half, high=mean + half)


@dataclass(frozen=True, kw_only=True, slots=True)
class CellResult:
    """What one cell came to; `figures` are None where it failed."""

    cell: Cell
    training: str
    run_id: str | None = None
    version: str | None = None  # in the model registry
    step: int | None = None  # of the weights kept
    figures: Mapping[str, float] | None = None  # `val/miou`, `test/miou_at_val` …
    failure: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One configuration."""

    choices: Choices
    asked: int  # seeds
    done: int
    figures: Mapping[str, Spread]

    @property
    def title(self) -> str:
        """Its choices in short."""
        return title_of(self.choices)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """All of it, ready to be laid out."""

    name: str
    keys: tuple[str, ...]  # what varies but the seed
    columns: Mapping[str, str]  # figure -> title
    rows: tuple[Row, ...]
    cells: tuple[CellResult, ...]
    chosen_by: str  # figure; `val/miou` unless the recipe says otherwise
    best_row: Row | None  # None: without validation nothing may choose
    best_cell: CellResult | None

    @property
    def failed(self) -> tuple[CellResult, ...]:
        """The cells that are missing."""
        return tuple(result for result in self.cells if result.figures is None)

    @property
    def has_seeds(self) -> bool:
        """Whether any configuration was trained from several seeds."""
        return any(row.asked > 1 for row in self.rows)

    @property
    def note(self) -> str:
        """How to read the figures."""
        seeds = (
            "mean over seeds and Student's t 95 % interval of that mean: it tells how seeds differ, not images"
            if self.has_seeds
            else "one training each, so no intervals over seeds"
        )
        chosen = f" Best: by {self.columns.get(self.chosen_by, self.chosen_by)}." if self.best_row else ""
        if any(name.startswith("val/") for name in self.columns):
            chosen += " Figures of val are at the threshold that is best there; it and the weights were chosen on val."
        return f"In percent, {seeds}.{chosen}"


def compare(experiment: Experiment, results: Sequence[CellResult]) -> Comparison:
    """Group results by configuration; the best of them by what the recipe chooses weights by, on val alone."""
    by_cell = {result.cell.choices: result for result in results}
    rows = tuple(
        _row(choices, [by_cell[cell.choices] for cell in cells])
        for choices, cells in experiment.configurations.items()
    )
    train = experiment.recipe.train
    chosen_by, sign = f"val/{train.best_metric}", 1 if train.best_is == "highest" else -1
    judged = [row for row in rows if chosen_by in row.figures]
    cells = [result for result in results if result.figures is not None and chosen_by in result.figures]
    return Comparison(
        name=experiment.name,
        keys=tuple(key for key, _ in experiment.cells[0].configuration),
        columns=_columns(rows),
        rows=rows,
        cells=tuple(results),
        chosen_by=chosen_by,
        best_row=max(judged, key=lambda row: sign * row.figures[chosen_by].mean, default=None),
        best_cell=max(cells, key=lambda one: sign * (one.figures or {})[chosen_by], default=None),
    )


def validation_figures(facts: Mapping[str, float]) -> dict[str, float]:
    """The figures of a finished training that a table shows."""
    return {f"val/{name}": value for name, value in facts.items() if name != "step"}


def test_figures(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """Model -> figures of an evaluation, at the threshold chosen on val where there is one."""
    found: dict[str, dict[str, float]] = {}
    for result in evaluation.results:
        scores, figures = result.scores, found.setdefault(result.model, {})
        if result.protocol == "original":
            figures[f"{result.set_name}/original_mean_iou"] = scores.standard.mean_iou.value
            figures[f"{result.set_name}/original_overall_iou"] = scores.standard.overall_iou.value
            continue
        for name, group in (("miou", scores.miou), ("iou_fg", scores.iou_fg)):
            at_val, score = group.at_val is not None, group.at_val or group.at_fixed
            place = "at_val" if at_val else f"at_{score.threshold:g}"
            figures[f"{result.set_name}/{name}_{place}"] = score.value
        figures[f"{result.set_name}/ap"] = scores.ap.value
    return found


def _row(choices: Choices, results: Sequence[CellResult]) -> Row:
    done = [result.figures for result in results if result.figures is not None]
    names = dict.fromkeys(name for figures in done for name in figures)
    spreads = {name: Spread.of([figures[name] for figures in done if name in figures]) for name in names}
    return Row(choices=choices, asked=len(results), done=len(done), figures=spreads)


def _columns(rows: Sequence[Row]) -> dict[str, str]:
    names = dict.fromkeys(name for row in rows for name in row.figures)
    return {name: _title(name) for name in names if name != "val/threshold"}


def _title(name: str) -> str:
    """`val mIoU`, `test mIoU @val`, `test mean IoU (original size)`."""
    place, _, figure = name.partition("/")
    if figure.startswith("original_"):
        return f"{place} {figure.removeprefix('original_').replace('_iou', ' IoU')} (original size)"
    figure, _, threshold = figure.partition("_at_")
    return f"{place} {_VALIDATION.get(figure, figure)}{f' @{threshold}' if threshold else ''}"
