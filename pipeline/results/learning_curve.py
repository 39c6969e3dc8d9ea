"""The learning curve as a picture: AP over how many phrases a network was trained on, a panel a set."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.pictures import SERIES, dress_axes, hex_colour
from pipeline.results.record import ResultRow, merged_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_APART = 0.09  # of neighbouring networks at one count


def plot_learning_curve(rows: Sequence[ResultRow]) -> bytes:
    """A PNG with a transparent ground: a dot a network and count, in percent, with its 95 % interval.

    Args:
        rows: of models called `NETWORK, COUNT phrases`; counts stand in the order in which they come.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    merged = merged_rows(rows)
    sets = list(dict.fromkeys(row.set_name for row in merged))
    figure = Figure(figsize=(4.2 * len(sets), 3.4), dpi=150, layout="constrained", facecolor="none")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(sets), sharey=True, squeeze=False)[0]
    for axes, set_name in zip(panels, sets, strict=True):
        _draw(axes, [row for row in merged if row.set_name == set_name])
        dress_axes(axes, x_label="phrases trained on", y_label="AP, %", title=set_name)
    panels[0].legend(frameon=False, labelcolor=panels[0].xaxis.label.get_color())
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=True)
    return buffer.getvalue()


def _draw(axes: "Axes", rows: Sequence[ResultRow]) -> None:
    scores = {tuple(row.model.removesuffix(" phrases").split(", ", 1)): row.ap for row in rows}
    networks = list(dict.fromkeys(network for network, _ in scores))
    counts = list(dict.fromkeys(count for _, count in scores))
    for number, network in enumerate(networks):
        shift = _APART * (number - (len(networks) - 1) / 2)
        points = [(counts.index(count) + shift, ap) for (one, count), ap in scores.items() if one == network]
        axes.errorbar(
            [place for place, _ in points],
            [100 * ap.value for _, ap in points],
            yerr=[
                [100 * (ap.value - (ap.value if ap.low is None else ap.low)) for _, ap in points],
                [100 * ((ap.value if ap.high is None else ap.high) - ap.value) for _, ap in points],
            ],
            color=hex_colour(SERIES[number % len(SERIES)]),
            marker="o",
            linewidth=1.5,
            capsize=3,
            label=network,
        )
    axes.set_xticks(range(len(counts)), counts)
