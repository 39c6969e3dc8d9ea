"""Scores as functions of sums over images, so that a bootstrap resample is one matrix product."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

PRECISION_LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)
_RESAMPLES_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class PhraseCounts:
    """Pixel counts, one row a phrase."""

    true_positives: NDArray[np.uint32]  # N,T
    false_positives: NDArray[np.uint32]  # N,T
    foreground: NDArray[np.uint32]  # N
    pixels: NDArray[np.uint32]  # N
    image: NDArray[np.uint32]  # N  number of the phrase's image, 0..images-1
    images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """Sums over images, one row a resample (R); the first axis is 1 for the data set itself."""

    phrases: Float  # R
    true_positives: Float  # R,T
    false_positives: Float  # R,T
    foreground: Float  # R
    pixels: Float  # R
    iou: Float  # R,T  sum over phrases of TP/(1+TP+FP+FN)
    standard_iou: Float  # R  sum over phrases of TP/(TP+FP+FN) at the one threshold
    intersection: Float  # R  sum over phrases of TP at it
    union: Float  # R
    at_least: Float  # R,5  phrases with standard IoU >= level
    above: Float  # R,5  and with > level


def per_image(counts: PhraseCounts, *, standard_index: int) -> tuple[Float, tuple[int, ...]]:
    """Sums over the phrases of each image, `I,K`, and the widths of their groups in `Totals`' order."""
    hit = counts.true_positives.astype(np.float64)  # N,T
    false = counts.false_positives.astype(np.float64)
    foreground = counts.foreground.astype(np.float64)
    union = foreground[:, None] + false  # TP + FN + FP
    intersection, standard_union = hit[:, standard_index], union[:, standard_index]
    standard = np.divide(
        intersection, standard_union, out=np.zeros_like(intersection), where=standard_union > 0
    )
    levels = np.asarray(PRECISION_LEVELS)
    groups = [
        np.ones((len(hit), 1)),
        hit,
        false,
        foreground[:, None],
        counts.pixels.astype(np.float64)[:, None],
        hit / (1.0 + union),
        standard[:, None],
        intersection[:, None],
        standard_union[:, None],
        (standard[:, None] >= levels).astype(np.float64),
        (standard[:, None] > levels).astype(np.float64),
    ]
    rows = np.concatenate(groups, axis=1)
    sums = np.zeros((counts.images, rows.shape[1]))
    np.add.at(sums, counts.image, rows)
    return sums, tuple(group.shape[1] for group in groups)


def totals_of(sums: Float, widths: tuple[int, ...]) -> Totals:
    """Names the columns of `R,K` sums."""
    parts = np.split(sums, np.cumsum(widths)[:-1], axis=1)
    names = Totals.__slots__
    flat = {"phrases", "foreground", "pixels", "standard_iou", "intersection", "union"}
    return Totals(
        **{name: part[:, 0] if name in flat else part for name, part in zip(names, parts, strict=True)}
    )


def resampled(sums: Float, *, resamples: int, seed: int) -> Iterator[Float]:
    """Sums over images drawn with replacement, as many as there are: blocks of `r,K`, R rows in all."""
    generator = np.random.Generator(np.random.PCG64(seed))
    images = len(sums)
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        rows = min(_RESAMPLES_AT_ONCE, resamples - start)
        drawn = generator.integers(images, size=(rows, images))
        drawn += np.arange(rows)[:, None] * images
        times = np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images)
        yield times.astype(np.float64) @ sums


def average_precision(precision: Float, recall: Float, predicted: NDArray[np.bool_]) -> float:
    """Area under one precision-recall curve by Simpson's rule over its distinct points, as CLIPSeg takes it.

    Args:
        precision: `T`, pooled TP/(1+TP+FP).
        recall: `T`, pooled TP/(1+TP+FN).
        predicted: `T`, False at thresholds that nothing exceeds; those are left out.
    """
    from scipy.integrate import simpson

    # Among points of equal recall the protocol has no order of its own but that of a Python set of pairs of
    # floats, which is the same in every run: followed here so that figures agree there too.
    distinct = set(zip(recall[predicted].tolist(), precision[predicted].tolist(), strict=True))
    points = sorted(distinct, key=lambda point: point[0])
    if len(points) < 2:
        return 0.0
    return float(simpson([height for _, height in points], x=[place for place, _ in points]))
