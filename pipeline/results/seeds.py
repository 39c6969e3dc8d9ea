"""One figure out of those of several seeds, with an interval that tells of images and of trainings."""

import math
from collections.abc import Sequence
from statistics import fmean

from ldznet.score_differences import Difference
from ldznet.score_results import Score
from pipeline.experiments.comparison import Spread


def over_seeds(scores: Sequence[Score]) -> Score:
    """The mean of one system's scores on one set, a score a seed.

    Its 95 % interval joins two sources that are independent: which images the set has (bootstrap: the images are the
    same for all seeds, so more seeds do not shrink it) and how the training went (Student's t over the seeds). Half
    widths add in squares. Of one seed it is the score itself, whose interval tells of images alone.
    """
    if len(scores) == 1:
        return scores[0]
    bootstrapped = [
        score.high - score.low for score in scores if score.high is not None and score.low is not None
    ]
    mean, half = _joined([score.value for score in scores], bootstrapped)
    return Score(value=mean, low=max(mean - half, 0.0), high=min(mean + half, 1.0))


def difference_over_seeds(differences: Sequence[Difference]) -> Difference:
    """The mean of two systems' differences on one set, one a seed that both were trained with; as `over_seeds`."""
    if len(differences) == 1:
        return differences[0]
    mean, half = _joined([one.value for one in differences], [one.high - one.low for one in differences])
    return Difference(value=mean, low=mean - half, high=mean + half)


def _joined(values: Sequence[float], widths: Sequence[float]) -> tuple[float, float]:
    """The mean, and half the width of its interval."""
    spread = Spread.of(values)
    assert spread.high is not None, "several seeds have an interval"
    of_images = fmean(widths) / 2 if widths else 0.0
    return spread.mean, math.hypot(of_images, spread.high - spread.mean)
