"""A paired difference of two networks: its value, its interval, and what may be compared."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ldznet.score_differences import Difference, score_differences
from ldznet.scores import SegmentationScores


def counted(logits: Tensor, masks: Tensor, *, images: int = 40) -> SegmentationScores:
    scores = SegmentationScores()
    scores.update(logits, masks, image_ids=[f"photo {row % images}" for row in range(len(logits))])
    return scores


@pytest.fixture(scope="module")
def two() -> tuple[SegmentationScores, SegmentationScores]:
    """Two networks that find the same photos hard, the first a little better on all of them."""
    generator = torch.Generator().manual_seed(3)
    masks = torch.rand(120, 1, 16, 16, generator=generator) < 0.3
    hard = torch.rand(40, generator=generator).repeat(3)[:, None, None, None] * 4
    noise = torch.randn(masks.shape, generator=generator)
    return counted(noise * hard + masks * 3.2 - 1.5, masks), counted(noise * hard + masks * 3.0 - 1.5, masks)


def test_the_value_is_that_of_the_scores(two: tuple[SegmentationScores, SegmentationScores]) -> None:
    first, second = two
    found = score_differences(first, second, thresholds=(0.5, 0.3))
    alone = first.compute(val_threshold=0.5, resamples=0), second.compute(val_threshold=0.3, resamples=0)
    ours, theirs = (one.miou.at_val for one in alone)
    assert ours is not None and theirs is not None
    assert found.miou.value == pytest.approx(ours.value - theirs.value)
    assert found.ap.value == pytest.approx(alone[0].ap.value - alone[1].ap.value)


def test_what_makes_a_photo_hard_for_both_falls_out(
    two: tuple[SegmentationScores, SegmentationScores],
) -> None:
    first, second = two
    found = score_differences(first, second, thresholds=(0.5, 0.5))
    alone = first.compute(val_threshold=0.5).ap
    assert alone.high is not None and alone.low is not None
    assert found.ap.high - found.ap.low < 0.2 * (alone.high - alone.low)
    assert 0 < found.ap.low <= found.ap.value <= found.ap.high
    turned = score_differences(second, first, thresholds=(0.5, 0.5))
    assert np.allclose([turned.ap.low, turned.ap.high], [-found.ap.high, -found.ap.low])


def test_a_network_is_not_ahead_of_itself(two: tuple[SegmentationScores, SegmentationScores]) -> None:
    found = score_differences(two[0], two[0], thresholds=(0.4, 0.4))
    assert found.miou == found.ap == Difference(value=0, low=0, high=0)
    assert str(found.ap) == "+0.0 [+0.0, +0.0]"


def test_other_phrases_do_not_compare(two: tuple[SegmentationScores, SegmentationScores]) -> None:
    generator = torch.Generator().manual_seed(4)
    masks = torch.rand(120, 1, 16, 16, generator=generator) < 0.3
    other = counted(masks.float(), masks)
    elsewhere = counted(masks.float(), masks, images=41)
    for first, second in (
        (two[0], other),
        (other, elsewhere),
        (other, counted(masks[:9].float(), masks[:9])),
    ):
        with pytest.raises(ValueError, match="same phrases in the same order"):
            score_differences(first, second, thresholds=(0.5, 0.5))
