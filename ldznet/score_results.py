"""What scoring gives: every figure with its interval and the threshold it was taken at."""

from typing import Literal

from ldznet.config import Config

ThresholdChoice = Literal["best on this set", "fixed", "chosen on val", "none"]


class Score(Config):
    """One figure with its bootstrap 95 % interval over images. All are shares in [0, 1].

    An interval is None where none was asked for.
    """

    value: float
    low: float | None = None
    high: float | None = None
    threshold: float | None = (
        None  # on the sigmoid, `p > threshold`; None: pooled over all, or stated elsewhere
    )
    chosen: ThresholdChoice = "none"

    def __str__(self) -> str:
        text = f"{100 * self.value:.1f}"
        if self.low is not None and self.high is not None:
            text += f" [{100 * self.low:.1f}, {100 * self.high:.1f}]"
        return text


class ThresholdedScore(Config):
    """One figure at the three thresholds that tables in the field use, each under its name.

    `best` is optimistic: its threshold was chosen on the very set that it scores (as in LD-ZNet's tables).
    It is chosen again in each bootstrap resample. `at_fixed` is what CLIPSeg reports. `at_val` is honest.
    """

    best: Score
    at_fixed: Score
    at_val: Score | None = None


class StandardScores(Config):
    """Standard IoU (nothing added to the union) at one threshold.

    PhraseCut's own protocol at original image size: `mean_iou`, `overall_iou` (there called cumulative IoU),
    `precision_above` (IoU > x). Referring sets: `overall_iou` (oIoU), `mean_iou`, `precision_at` (IoU >= x).
    An empty prediction of an empty mask has IoU 0.
    """

    threshold: float
    mean_iou: Score
    overall_iou: Score
    precision_at: dict[str, Score]  # "0.5" … "0.9" -> share of phrases with IoU >= x
    precision_above: dict[str, Score]  # the same with IoU > x


class ScoreCurve(Config):
    """Figures at every threshold."""

    thresholds: tuple[float, ...]
    miou: tuple[float, ...]
    iou_fg: tuple[float, ...]
    iou_binary: tuple[float, ...]  # mean of foreground and background IoU, pooled
    precision: tuple[float, ...]
    recall: tuple[float, ...]


class Scores(Config):
    """All scores of one network on one set of phrases.

    Sources: CLIPSeg's evaluation protocol, which LD-ZNet's tables use, for `miou`, `iou_fg` and `ap`;
    PhraseCut's and the referring sets' own for `standard`.
    """

    phrases: int
    images: int
    resamples: int  # of the bootstrap; 0 for no intervals
    miou: ThresholdedScore
    iou_fg: ThresholdedScore
    ap: Score
    standard: StandardScores
    curve: ScoreCurve

    def flat(self) -> dict[str, float]:
        """Every figure under one name, for a tracker.

        `miou_best`, `miou_at_0.3`, `miou_at_val`, `iou_fg_…`, `ap`, `standard_mean_iou_at_0.5`,
        `standard_pr_0.5` … Shares in [0, 1]; an interval's ends are `…_low` and `…_high`, a chosen threshold
        is `…_threshold`.
        """
        standard = self.standard
        fixed = f"at_{self.miou.at_fixed.threshold:g}"
        named: dict[str, Score | None] = {"ap": self.ap}
        for name, score in (("miou", self.miou), ("iou_fg", self.iou_fg)):
            named[f"{name}_best"] = score.best
            named[f"{name}_{fixed}"] = score.at_fixed
            named[f"{name}_at_val"] = score.at_val
        named[f"standard_mean_iou_at_{standard.threshold:g}"] = standard.mean_iou
        named[f"standard_overall_iou_at_{standard.threshold:g}"] = standard.overall_iou
        named |= {f"standard_pr_{level}": score for level, score in standard.precision_at.items()}
        named |= {f"standard_pr_above_{level}": score for level, score in standard.precision_above.items()}
        figures = {"phrases": float(self.phrases), "images": float(self.images)}
        for name, estimate in named.items():
            if estimate is None:
                continue
            figures[name] = estimate.value
            if estimate.low is not None and estimate.high is not None:
                figures |= {f"{name}_low": estimate.low, f"{name}_high": estimate.high}
            if estimate.threshold is not None and estimate.chosen in {"best on this set", "chosen on val"}:
                figures[f"{name}_threshold"] = estimate.threshold
        return figures
