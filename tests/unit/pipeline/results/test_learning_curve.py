"""The learning curve: every network's points, each at its place."""

import io

import numpy as np
import pytest
from PIL import Image

from ldznet.score_results import Score
from pipeline.pictures import SERIES
from pipeline.results.learning_curve import plot_learning_curve
from pipeline.results.record import ResultRow


def row(model: str, ap: float, *, set_name: str = "test", seed: int = 1) -> ResultRow:
    score = Score(value=ap, low=ap - 0.05, high=ap + 0.05)
    scores = {"miou": score, "iou_fg": score, "ap": score}
    return ResultRow(
        model=model, seed=seed, set_name=set_name, phrases=9, parameters=1, seconds_per_phrase=0.1, **scores
    )


def drawn(rows: list[ResultRow]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(plot_learning_curve(rows))).convert("RGBA"))


def heights(picture: np.ndarray, number: int) -> np.ndarray:
    """Rows of the picture with a network's own colour, from the top."""
    own = (picture[..., :3] == SERIES[number]).all(axis=2) & (picture[..., 3] == 255)
    assert own.any()
    return np.flatnonzero(own.any(axis=1))


def test_the_better_network_stands_higher() -> None:
    counts = ("300 phrases", "1,000 phrases", "all phrases")
    rows = [row(f"{name}, {count}", ap) for name, ap in (("low", 0.3), ("high", 0.8)) for count in counts]
    picture = drawn(rows)
    low, high = heights(picture, 0), heights(picture, 1)
    assert np.median(high) < np.median(low)


@pytest.mark.parametrize("sets", [("test",), ("test", "foreign")])
def test_each_set_has_its_panel_and_seeds_are_averaged(sets: tuple[str, ...]) -> None:
    rows = [
        row("one, 300 phrases", ap, set_name=name, seed=seed)
        for name in sets
        for seed, ap in ((1, 0.4), (2, 0.5))
    ]
    picture = drawn(rows)
    assert picture.shape[1] == pytest.approx(630 * len(sets), abs=2)
    assert len(heights(picture, 0))
