"""Charts as inline SVG. Colours are the page's CSS variables, so they follow its light and dark dress."""

import math
from collections.abc import Sequence
from html import escape
from itertools import chain

import numpy as np

from ldznet.score_results import Score
from pipeline.pictures import SERIES, smoothed
from pipeline.report.content import CurveChart

_WIDTH, _HEIGHT = 520, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 40
_MOST_POINTS = 400  # of a line: more cannot be seen
_ROW = 34


def curve_chart(chart: CurveChart) -> str:
    """Lines of several runs: raw values faint, a moving average over them. A value that is not finite is a gap."""
    finite = [
        [(x, y) for x, y in zip(curve.steps, curve.values, strict=True) if _drawable(y, log=chart.log_scale)]
        for curve in chart.curves
    ]
    points = [point for line in finite for point in line]
    if not points:
        return ""
    x_ticks = _ticks(min(x for x, _ in points), max(x for x, _ in points))
    heights = [_scale(y, log=chart.log_scale) for _, y in points]
    y_ticks = _ticks(*np.percentile(heights, (0, 99.5)).tolist())
    frame = _Frame(x_ticks=x_ticks, y_ticks=y_ticks, log=chart.log_scale)
    lines = "".join(
        frame.line(line, colour=number % len(SERIES) + 1) for number, line in enumerate(finite) if line
    )
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(chart.title)}">'
        f"{frame.grid(chart.x_label)}{lines}</svg>"
    )


def interval_chart(
    rows: Sequence[tuple[str, Score]],
    *,
    label: str,
    points: Sequence[Sequence[float]] = (),
    from_zero: bool = True,
) -> str:
    """One row a network: its score as a dot, its 95 % interval as a bar; a row's single values as ticks on it."""
    ends = [end for _, score in rows for end in (score.value, score.low, score.high) if end is not None]
    ends += chain.from_iterable(points)
    ticks = _ticks(0 if from_zero else 100 * min(ends), 100 * max(*ends, 0.01))
    longest = max(len(name) for name, _ in rows)
    left, width = min(320, max(150, 8 * longest + 20)), 640  # a letter is about 8 wide
    height = _TOP + _ROW * len(rows) + _BOTTOM

    def place(value: float) -> float:
        return _between(100 * value, ticks, left, width - _RIGHT - 34)

    parts = []
    bottom = height - _BOTTOM
    for tick in ticks:
        x = place(tick / 100)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{tick:g}</text>')
    for number, (name, score) in enumerate(rows):
        y = _TOP + _ROW * (number + 0.5)
        colour = f"var(--series-{number % len(SERIES) + 1})"
        parts.append(
            f'<text class="name" x="{left - 14}" y="{y + 5:.1f}" text-anchor="end">{escape(name)}</text>'
        )
        if score.low is not None and score.high is not None:
            start, end = place(score.low), place(score.high)
            parts.append(
                f'<rect x="{start:.1f}" y="{y - 5:.1f}" width="{max(2.0, end - start):.1f}" height="10" rx="5" '
                f'fill="{colour}" opacity="0.28"/>'
            )
        for value in points[number] if points else ():
            at = place(value)
            parts.append(
                f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y - 9:.1f}" y2="{y + 9:.1f}" stroke="{colour}" '
                'stroke-width="1.5"/>'
            )
        x, end = (
            place(score.value),
            max(map(place, [score.high or score.value, *(points[number] if points else ())])),
        )
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{colour}"/>')
        parts.append(f'<text class="value" x="{end + 12:.1f}" y="{y + 5:.1f}">{100 * score.value:.1f}</text>')
    middle = (left + width - _RIGHT) / 2
    parts.append(
        f'<text class="tick" x="{middle:.0f}" y="{height - 4}" text-anchor="middle">{escape(label)}</text>'
    )
    return f'<svg class="chart" viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'


class _Frame:
    """Axes of a curve chart."""

    def __init__(self, *, x_ticks: list[float], y_ticks: list[float], log: bool) -> None:
        self._x_ticks, self._y_ticks, self._log = x_ticks, y_ticks, log

    def grid(self, x_label: str) -> str:
        parts = []
        bottom = _HEIGHT - _BOTTOM
        for tick in self._y_ticks:
            y = self._y(tick)
            parts.append(
                f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
            shown = f"{10**tick:.2g}" if self._log else f"{tick:g}"
            parts.append(
                f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{shown}</text>'
            )
        for tick in self._x_ticks:
            x = self._x(tick)
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>'
            )
        parts.append(
            f'<text class="tick" x="{(_LEFT + _WIDTH) / 2:.0f}" y="{_HEIGHT - 4}" text-anchor="middle">'
            f"{escape(x_label)}</text>"
        )
        return "".join(parts)

    def line(self, points: list[tuple[float, float]], *, colour: int) -> str:
        steps = [x for x, _ in points]
        values = [_scale(y, log=self._log) for _, y in points]
        drawn = ""
        averaged = smoothed(values)
        if averaged != values:
            drawn = self._polyline(steps, values, colour, "raw")
        if len(points) == 1:
            x, y = self._x(steps[0]), self._y(values[0])
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="var(--series-{colour})"/>'
        return drawn + self._polyline(steps, averaged, colour, "line")

    def _polyline(self, steps: list[float], values: list[float], colour: int, kind: str) -> str:
        stride = max(1, math.ceil(len(steps) / _MOST_POINTS))
        chosen = sorted({*range(0, len(steps), stride), len(steps) - 1})
        path = " ".join(f"{self._x(steps[place]):.1f},{self._y(values[place]):.1f}" for place in chosen)
        return f'<polyline class="{kind}" points="{path}" stroke="var(--series-{colour})"/>'

    def _x(self, value: float) -> float:
        return _between(value, self._x_ticks, _LEFT, _WIDTH - _RIGHT)

    def _y(self, value: float) -> float:
        place = _between(value, self._y_ticks, _HEIGHT - _BOTTOM, _TOP)
        return min(max(place, _TOP - 6.0), _HEIGHT - _BOTTOM + 2.0)


def _between(value: float, ticks: list[float], start: float, end: float) -> float:
    return start + (end - start) * (value - ticks[0]) / (ticks[-1] - ticks[0])


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, 4 to 7 of them, from at or below `low` to at or above `high`."""
    spread = high - low if high > low else max(abs(high), 1.0)
    rough = spread / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def _drawable(value: float, *, log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log)


def _scale(value: float, *, log: bool) -> float:
    return math.log10(value) if log else float(value)
