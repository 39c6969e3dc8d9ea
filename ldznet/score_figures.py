"""The figures of a set and of its bootstrap resamples alike, and the table made of both."""

import numpy as np

from ldznet.score_intervals import PRECISION_LEVELS, Float, Totals, average_precision
from ldznet.score_results import Score, ThresholdChoice, ThresholdedScore


class Figures:
    """The figures of each of R sets: `R`, `R,T` or `R,5`."""

    def __init__(self, totals: Totals) -> None:
        hit, false = totals.true_positives, totals.false_positives  # R,T
        missed = totals.foreground[:, None] - hit
        rejected = totals.pixels[:, None] - hit - false - missed
        self.miou = totals.iou / totals.phrases[:, None]
        self.iou_fg = hit / (1.0 + hit + false + missed)
        self.iou_binary = (self.iou_fg + rejected / (1.0 + rejected + missed + false)) / 2
        self.precision = hit / (1.0 + hit + false)
        self.recall = hit / (1.0 + hit + missed)
        curves = zip(self.precision, self.recall, hit + false > 0, strict=True)
        self.ap = np.array([average_precision(*curve) for curve in curves])
        self.standard_mean_iou = totals.standard_iou / totals.phrases
        self.standard_overall_iou = np.divide(
            totals.intersection, totals.union, out=np.zeros_like(totals.union), where=totals.union > 0
        )
        self.precision_at = totals.at_least / totals.phrases[:, None]
        self.precision_above = totals.above / totals.phrases[:, None]


class FigureTable:
    """Turns figures of the set and of its resamples into scores with intervals."""

    def __init__(self, thresholds: tuple[float, ...], whole: Figures, spread: Figures | None) -> None:
        self._thresholds = thresholds
        self._whole = whole
        self._spread = spread

    def score(
        self, name: str, *, column: int | None = None, chosen: ThresholdChoice = "none", best: bool = False
    ) -> Score:
        """One figure with its interval; `best` takes the highest column, in each resample anew."""
        values: Float = getattr(self._whole, name)
        threshold = None
        if best:
            column = int(values[0].argmax())
        if chosen != "none" and column is not None:
            threshold = self._thresholds[column]
        value = values[0] if column is None else values[0, column]
        low = high = None
        if self._spread is not None:
            drawn: Float = getattr(self._spread, name)
            if best:
                drawn = drawn.max(axis=1)
            elif column is not None:
                drawn = drawn[:, column]
            low, high = (float(end) for end in np.percentile(drawn, (2.5, 97.5)))
        return Score(value=float(value), low=low, high=high, threshold=threshold, chosen=chosen)

    def thresholded(self, name: str, *, fixed: int, val: int | None) -> ThresholdedScore:
        """A figure that depends on the threshold, at the three that are reported."""
        return ThresholdedScore(
            best=self.score(name, best=True, chosen="best on this set"),
            at_fixed=self.score(name, column=fixed, chosen="fixed"),
            at_val=None if val is None else self.score(name, column=val, chosen="chosen on val"),
        )

    def levels(self, name: str) -> dict[str, Score]:
        """A figure that has one column for each IoU level."""
        return {
            f"{level:g}": self.score(name, column=column) for column, level in enumerate(PRECISION_LEVELS)
        }
