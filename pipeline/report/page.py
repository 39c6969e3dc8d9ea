"""`report.html`: one page that tells what ran and shows what came out. Self-contained: no script, no link outward."""

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ldznet.published_numbers import PublishedScores, published_scores
from ldznet.score_results import Score, Scores
from pipeline.pictures import PREDICTION, SERIES, TRUTH, overlay_mask
from pipeline.report.charts import curve_chart, interval_chart
from pipeline.report.content import Example, Mask, NetworkScores, ReportContent
from pipeline.tracking.redaction import redacted_text

__all__ = ["ReportContent", "write_report"]

_TEMPLATE = "page.html.j2"
_TILE = 320  # px, the longest side of a picture
_JPEG_QUALITY = 85
_LEVELS = ("0.5", "0.6", "0.7", "0.8", "0.9")


def write_report(path: Path, content: ReportContent) -> None:
    """Write the page, whole or not at all.

    Args:
        path: Where to, such as `RUN/report.html`.
        content: What it tells.
    """
    page = redacted_text(render_report(content))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)


def render_report(content: ReportContent) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    seconds = [stage.seconds for stage in content.stages]
    longest = max(seconds, default=0.0) or 1.0
    return environment.get_template(_TEMPLATE).render(
        content=content,
        splits=_splits(content.scores),
        charts=[(chart, Markup(curve_chart(chart))) for chart in content.charts],  # noqa: S704 - our own SVG
        examples=[_shown(example) for example in content.examples],
        series_colours=len(SERIES),
        total_seconds=sum(seconds),
        stages=[(stage, stage.seconds / longest) for stage in content.stages],
        quarantined=sum((content.quarantine or {}).values()),
    )


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cell:
    """A score in a table."""

    value: str
    interval: str = ""
    threshold: str = ""
    best: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Split:
    """One split's part of the page."""

    title: str
    phrases: int
    images: int
    chart: Markup
    measure: str
    headline: list[tuple[str, _Cell]]
    groups: list[tuple[str, int]]  # group, how many columns
    columns: list[tuple[str, str]]  # group, column
    rows: list[tuple[str, list[_Cell]]]
    standard_columns: list[str]
    standard_rows: list[tuple[str, list[_Cell]]]
    standard_threshold: str
    published: list[PublishedScores]
    fixed: float
    has_intervals: bool


def _splits(scores: Iterable[NetworkScores]) -> list[_Split]:
    groups: dict[tuple[str, str], list[NetworkScores]] = {}
    for entry in scores:
        groups.setdefault((entry.data_set, entry.split), []).append(entry)
    return [_split(data_set, split, entries) for (data_set, split), entries in groups.items()]


def _split(data_set: str, split: str, entries: list[NetworkScores]) -> _Split:
    first = entries[0].scores
    fixed = first.miou.at_fixed.threshold or 0.0
    has_val = all(entry.scores.miou.at_val is not None for entry in entries)
    places = ["best", f"@ {fixed:g}"] + (["val"] if has_val else [])
    honest = [(entry.network, entry.scores.miou.at_val or entry.scores.miou.at_fixed) for entry in entries]
    measure = "mIoU, threshold chosen on val" if has_val else f"mIoU, threshold {fixed:g}"
    headline = _highlighted([[_cell(score)] for _, score in honest], [[score] for _, score in honest])
    table = [_clipseg_scores(entry.scores, has_val=has_val) for entry in entries]
    standard = [_standard_scores(entry.scores) for entry in entries]
    chart = interval_chart(honest, label=f"{measure}, % (bar: 95 % interval)")
    names = [entry.network for entry in entries]
    return _Split(
        title=f"{data_set} · {split}",
        phrases=first.phrases,
        images=first.images,
        chart=Markup(chart),  # noqa: S704 - our own SVG
        measure=measure,
        headline=[(name, cells[0]) for name, cells in zip(names, headline, strict=True)],
        groups=[("mIoU", len(places)), ("IoU FG", len(places)), ("AP", 1)],
        columns=[(group, place) for group in ("mIoU", "IoU FG") for place in places] + [("AP", "")],
        rows=list(zip(names, _cells(table), strict=True)),
        standard_columns=["mean IoU", "overall IoU", *(f"Pr@{level}" for level in _LEVELS)],
        standard_rows=list(zip(names, _cells(standard), strict=True)),
        standard_threshold=_standard_thresholds(entries),
        published=list(published_scores(data_set, split)),
        fixed=fixed,
        has_intervals=first.resamples > 0,
    )


def _standard_thresholds(entries: list[NetworkScores]) -> str:
    """The one that all rows were taken at, or each row's."""
    each = [f"{entry.scores.standard.threshold:g}" for entry in entries]
    return each[0] if len(set(each)) == 1 else f"{', '.join(each)}, in the rows' order"


def _clipseg_scores(scores: Scores, *, has_val: bool) -> list[Score]:
    row = []
    for group in (scores.miou, scores.iou_fg):
        row += [group.best, group.at_fixed]
        if has_val and group.at_val is not None:
            row.append(group.at_val)
    return [*row, scores.ap]


def _standard_scores(scores: Scores) -> list[Score]:
    standard = scores.standard
    return [standard.mean_iou, standard.overall_iou, *(standard.precision_at[level] for level in _LEVELS)]


def _cells(table: list[list[Score]]) -> list[list[_Cell]]:
    return _highlighted([[_cell(score) for score in row] for row in table], table)


def _cell(score: Score) -> _Cell:
    interval = ""
    if score.low is not None and score.high is not None:
        interval = f"{100 * score.low:.1f} to {100 * score.high:.1f}"
    searched = score.chosen in {"best on this set", "chosen on val"} and score.threshold is not None
    threshold = f"t = {score.threshold:.2f}" if searched else ""
    return _Cell(value=f"{100 * score.value:.1f}", interval=interval, threshold=threshold)


def _highlighted(cells: list[list[_Cell]], table: list[list[Score]]) -> list[list[_Cell]]:
    """The highest of each column marked, where there is more than one row."""
    if len(table) < 2:
        return cells
    best = [
        max(range(len(table)), key=lambda row: table[row][column].value) for column in range(len(table[0]))
    ]
    return [
        [
            _Cell(
                value=cell.value, interval=cell.interval, threshold=cell.threshold, best=best[column] == row
            )
            for column, cell in enumerate(line)
        ]
        for row, line in enumerate(cells)
    ]


def _shown(example: Example) -> dict[str, Any]:
    photo = example.image.convert("RGB")
    scale = _TILE / max(photo.size)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    photo = photo.resize(size, Image.Resampling.LANCZOS)
    tiles = [
        {"name": "image", "source": _inline(photo), "iou": None, "kind": "image"},
        {
            "name": "truth",
            "source": _inline(overlay_mask(photo, example.truth, colour=TRUTH)),
            "iou": None,
            "kind": "truth",
        },
    ]
    for network, mask in example.predictions.items():
        tinted = overlay_mask(photo, mask, colour=PREDICTION, truth=example.truth)
        iou = f"{100 * _iou(mask, example.truth):.0f}"
        tiles.append({"name": network, "source": _inline(tinted), "iou": iou, "kind": "prediction"})
    return {"phrase": example.phrase, "group": example.group, "tiles": tiles, "size": size}


def _iou(mask: Mask, truth: Mask) -> float:
    if mask.shape != truth.shape:
        size = (truth.shape[1], truth.shape[0])
        mask = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    union = int((mask | truth).sum())
    return int((mask & truth).sum()) / union if union else 0.0


def _inline(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=_JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
