"""Polygons -> pixels, by the two rules that the data sets' own tools use."""

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Points = NDArray[np.float64]  # N,2 as x,y in px

_COCO_SCALE = 5  # COCO walks a polygon's edges on a grid this much finer than the pixels


def fill_phrasecut(polygons: Iterable[Points], *, width: int, height: int) -> NDArray[np.bool_]:
    """The union of polygons `H,W` as PhraseCut's tools fill them.

    Corners are cut to whole pixels towards zero, inside and outline are filled, and a polygon of fewer than
    two corners is nothing.
    """
    canvas = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(canvas)
    for points in polygons:
        if len(points) >= 2:
            draw.polygon([(int(x), int(y)) for x, y in points], fill=1, outline=1)
    return np.asarray(canvas) > 0


def fill_coco(polygons: Iterable[Points], *, width: int, height: int) -> NDArray[np.bool_]:
    """The union of polygons `H,W` as COCO's mask tools fill them, pixel for pixel.

    The outline is walked on a grid five times as fine; where it crosses the middle of a pixel column, the
    column's pixels from there down change sides.
    """
    union = np.zeros((height, width), dtype=np.bool_)
    for points in polygons:
        if len(points) >= 3:
            union |= _fill_one_coco(points, width=width, height=height)
    return union


def _fill_one_coco(points: Points, *, width: int, height: int) -> NDArray[np.bool_]:
    corners = np.trunc(_COCO_SCALE * points + 0.5).astype(np.int64)
    closed = np.concatenate((corners, corners[:1]))
    walk = np.concatenate([_walk(start, end) for start, end in pairwise(closed)])
    u, v = walk[:, 0], walk[:, 1]
    steps = np.flatnonzero(u[1:] != u[:-1]) + 1  # only steps between columns of the fine grid count
    left = np.minimum(u[steps], u[steps - 1])  # a step from u-1 to u or back lies at u-1
    column = (left + 0.5) / _COCO_SCALE - 0.5
    row = np.ceil(np.clip((np.minimum(v[steps], v[steps - 1]) + 0.5) / _COCO_SCALE - 0.5, 0, height))
    crossing = (np.floor(column) == column) & (column >= 0) & (column <= width - 1)
    places = (column[crossing] * height + row[crossing]).astype(np.int64)  # counted down the columns
    changes = np.bincount(places, minlength=width * height + 1)[: width * height]
    return (np.cumsum(changes) % 2 == 1).reshape(width, height).T  # W,H -> H,W


def _walk(start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
    """Grid points from `start` to `end`, both included, one for each step along the longer axis: `N,2`."""
    delta = np.abs(end - start)
    axis = 0 if delta[0] >= delta[1] else 1
    # Always computed from the end with the smaller coordinate, so that shared edges agree.
    low, high = (end, start) if start[axis] > end[axis] else (start, end)
    distance = np.arange(delta[axis] + 1)
    slope = (high[1 - axis] - low[1 - axis]) / max(int(delta[axis]), 1)
    line = np.empty((distance.size, 2), dtype=np.int64)
    line[:, axis] = low[axis] + distance
    line[:, 1 - axis] = np.trunc(low[1 - axis] + slope * distance + 0.5)
    return line if low is start else line[::-1]
