"""A figure over seeds: its interval tells of images, which all seeds share, and of trainings."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldznet.score_results import Score
from pipeline.experiments.comparison import Spread
from pipeline.results.seeds import over_seeds

shares = st.floats(0.2, 0.8)


def score(value: float, half: float) -> Score:
    return Score(value=value, low=value - half, high=value + half)


def test_one_seed_is_left_as_it_is() -> None:
    one = Score(value=0.5, low=0.45, high=0.56, threshold=0.3, chosen="chosen on val")
    assert over_seeds([one]) == one


def test_seeds_that_agree_keep_the_interval_of_the_images() -> None:
    joined = over_seeds([score(0.5, 0.04)] * 3)
    assert (joined.value, joined.low, joined.high) == pytest.approx((0.5, 0.46, 0.54))


@given(values=st.lists(shares, min_size=2, max_size=5), half=st.floats(0, 0.1))
def test_both_sources_add_in_squares(values: list[float], half: float) -> None:
    joined, spread = over_seeds([score(value, half) for value in values]), Spread.of(values)
    assert joined.low is not None and joined.high is not None and spread.high is not None
    expected = math.hypot(half, spread.high - spread.mean)
    assert joined.value == pytest.approx(spread.mean)
    assert joined.high == pytest.approx(min(spread.mean + expected, 1))
    assert joined.low == pytest.approx(max(spread.mean - expected, 0))
