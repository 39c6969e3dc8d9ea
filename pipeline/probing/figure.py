"""The probe as a table and as the paper's figure 4: AP of each block at each timestep."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ldznet.score_results import Score
from pipeline.probing.cell import CellScore

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FACTS = ("miou", "phrases", "channels", "height", "width")
_COLUMNS = ("block", "timestep", "ap", "low", "high", "control_ap", "control_low", "control_high", *_FACTS)


def write_csv(path: Path, cells: Sequence[CellScore]) -> None:
    """One line a cell, figures as shares in [0,1]."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for cell in sorted(cells, key=lambda one: (one.block, one.timestep)):
            figures = [
                value
                for score in (cell.ap, cell.control)
                for value in ((score.value, score.low, score.high) if score else (None, None, None))
            ]
            facts = [getattr(cell, name) for name in _FACTS]
            writer.writerow([cell.block, cell.timestep, *figures, *facts])


def best_cell(cells: Sequence[CellScore]) -> CellScore:
    """The one with the highest AP; the lower block, then the lower timestep of equal ones."""
    return min(cells, key=lambda one: (-one.ap.value, one.block, one.timestep))


def write_heat_map(path: Path, cells: Sequence[CellScore], *, title: str) -> None:
    """Blocks across, timesteps down, AP in percent with half the width of its 95 % interval; below it the control's."""
    from matplotlib.figure import Figure

    aps = {(cell.timestep, cell.block): cell.ap for cell in cells}
    controls = {(cell.timestep, cell.block): cell.control for cell in cells if cell.control is not None}
    panels = [(title, aps)]
    if controls:
        panels.append(("the same decoders, given untrue phrases", controls))
    blocks, timesteps = {block for _, block in aps}, {timestep for timestep, _ in aps}
    size = (1.6 + 0.72 * len(blocks), len(panels) * (1.6 + 0.52 * len(timesteps)))
    figure = Figure(figsize=size, layout="constrained")
    shown = [100 * score.value for _, scores in panels for score in scores.values()]
    for axes, (heading, scores) in zip(
        figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True
    ):
        image = _draw_panel(axes, scores, between=(min(shown), max(shown)))
        axes.set_title(heading, fontsize=10)
        figure.colorbar(image, ax=axes, label="AP, %")
    figure.savefig(path, dpi=120)


def _draw_panel(
    axes: "Axes", scores: Mapping[tuple[int, int], Score], *, between: tuple[float, float]
) -> Any:
    """One heat map of scores by timestep and block; colours span the same range in every panel."""
    timesteps = sorted({timestep for timestep, _ in scores})
    blocks = sorted({block for _, block in scores})
    values = np.full((len(timesteps), len(blocks)), np.nan)
    for (timestep, block), score in scores.items():
        row, column = timesteps.index(timestep), blocks.index(block)
        values[row, column] = 100 * score.value
        half = "" if score.low is None or score.high is None else f"\n±{50 * (score.high - score.low):.1f}"
        dark = values[row, column] < sum(between) / 2
        axes.text(
            column, row, f"{100 * score.value:.1f}{half}", ha="center", va="center", fontsize=8,
            color="white" if dark else "black",
        )  # fmt: skip
    axes.set_xticks(range(len(blocks)), [str(block) for block in blocks])
    axes.set_yticks(range(len(timesteps)), [str(timestep) for timestep in timesteps])
    axes.set_xlabel("block")
    axes.set_ylabel("timestep")
    return axes.imshow(values, aspect="auto", cmap="viridis", vmin=between[0], vmax=between[1])
