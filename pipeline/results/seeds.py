"""One figure out of those of several seeds, with an interval that tells of images and of trainings."""

import math
from collections.abc import Sequence
from statistics import fmean

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
    spread = Spread.of([score.value for score in scores])
    assert spread.high is not None, "several seeds have an interval"
    bootstrapped = [
        score.high - score.low for score in scores if score.high is not None and score.low is not None
    ]
    of_images = fmean(bootstrapped) / 2 if bootstrapped else 0.0
    half = math.hypot(of_images, spread.high - spread.mean)
    return Score(value=spread.mean, low=max(spread.mean - half, 0.0), high=min(spread.mean + half, 1.0))
