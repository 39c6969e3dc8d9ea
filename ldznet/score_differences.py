"""How much one network is ahead of another on the same phrases: a paired bootstrap over images."""

from collections.abc import Callable

import numpy as np

from ldznet.config import Config
from ldznet.score_figures import Figures
from ldznet.score_intervals import Float
from ldznet.scores import SegmentationScores


class Difference(Config):
    """One figure of the first less that of the second, with its 95 % interval over images. In [-1, 1]."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


class Differences(Config):
    """Of mIoU, each at its own threshold, and of AP."""

    miou: Difference
    ap: Difference


def score_differences(
    first: SegmentationScores,
    second: SegmentationScores,
    *,
    thresholds: tuple[float, float],
    resamples: int = 1000,
    seed: int = 0,
) -> Differences:
    """Compare two networks that scored the same phrases in the same order.

    Each resample draws the same images for both, so that what makes an image hard for either falls out: intervals
    are narrower than those of the two scores suggest.

    Args:
        first: counts of one network.
        second: counts of the other.
        thresholds: at which the mIoU of each is taken.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: they did not score the same phrases of the same images.
    """
    if not first.same_phrases(second):
        raise ValueError(
            "a paired difference needs two networks scored on the same phrases in the same order"
        )
    ours, theirs = (one.bootstrap(resamples=resamples, seed=seed) for one in (first, second))
    places = first.threshold_index(thresholds[0]), second.threshold_index(thresholds[1])
    return Differences(
        miou=_difference(ours, theirs, lambda figures, of: figures.miou[:, places[of]]),
        ap=_difference(ours, theirs, lambda figures, _: figures.ap),
    )


def _difference(
    ours: tuple[Figures, Figures], theirs: tuple[Figures, Figures], figure: Callable[[Figures, int], Float]
) -> Difference:
    whole, spread = (figure(one, 0) - figure(other, 1) for one, other in zip(ours, theirs, strict=True))
    low, high = np.percentile(spread, (2.5, 97.5))
    return Difference(value=float(whole[0]), low=float(low), high=float(high))
