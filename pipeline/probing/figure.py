"""The probe as a table and as the paper's figure 4: AP of each block at each timestep."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.probing.cell import CellScore

_COLUMNS = ("block", "timestep", "ap", "low", "high", "miou", "phrases", "channels", "height", "width")


def write_csv(path: Path, cells: Sequence[CellScore]) -> None:
    """One line a cell, figures as shares in [0,1]."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for cell in sorted(cells, key=lambda one: (one.block, one.timestep)):
            writer.writerow([getattr(cell, column) for column in _COLUMNS])


def best_cell(cells: Sequence[CellScore]) -> CellScore:
    """The one with the highest AP; the lower block, then the lower timestep of equal ones."""
    return min(cells, key=lambda one: (-one.ap, one.block, one.timestep))


def write_heat_map(path: Path, cells: Sequence[CellScore], *, title: str) -> None:
    """Blocks across, timesteps down, AP in percent with half the width of its 95 % interval."""
    from matplotlib.figure import Figure

    blocks = sorted({cell.block for cell in cells})
    timesteps = sorted({cell.timestep for cell in cells})
    values = np.full((len(timesteps), len(blocks)), np.nan)
    texts = [["" for _ in blocks] for _ in timesteps]
    for cell in cells:
        row, column = timesteps.index(cell.timestep), blocks.index(cell.block)
        values[row, column] = 100 * cell.ap
        half = "" if cell.low is None or cell.high is None else f"\n±{50 * (cell.high - cell.low):.1f}"
        texts[row][column] = f"{100 * cell.ap:.1f}{half}"
    figure = Figure(figsize=(1.6 + 0.72 * len(blocks), 1.6 + 0.52 * len(timesteps)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, aspect="auto", cmap="viridis")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for row in range(len(timesteps)):
        for column in range(len(blocks)):
            dark = values[row, column] < middle
            axes.text(
                column, row, texts[row][column], ha="center", va="center", fontsize=8,
                color="white" if dark else "black",
            )  # fmt: skip
    axes.set_xticks(range(len(blocks)), [str(block) for block in blocks])
    axes.set_yticks(range(len(timesteps)), [str(timestep) for timestep in timesteps])
    axes.set_xlabel("block")
    axes.set_ylabel("timestep")
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes, label="AP, %")
    figure.savefig(path, dpi=120)
