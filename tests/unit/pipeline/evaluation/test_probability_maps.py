"""Predictions given out at any size."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.probability_maps import LogitMaps, PlainMaps
from pipeline.views import apply_to_mask, squash_view

SIDES = st.integers(1, 40)


@given(width=SIDES, height=SIDES, side=st.sampled_from([8, 64]), seed=st.integers(0, 9))
def test_masks_are_squashed_as_the_truth_is(width: int, height: int, side: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    ours = PlainMaps([~mask, mask]).at(1, height=side, width=side)
    assert (ours.shape, ours.dtype) == ((1, 1, side, side), torch.bool)
    truth = apply_to_mask(mask, squash_view(width=width, height=height, size=side))
    np.testing.assert_array_equal(ours[0, 0].numpy(), truth)
    np.testing.assert_array_equal(PlainMaps([mask]).at(0, height=height, width=width)[0, 0].numpy(), mask)


@given(width=SIDES, height=SIDES)
def test_probabilities_stay_probabilities(width: int, height: int) -> None:
    soft = np.random.default_rng(0).random((7, 5)).astype(np.float32)
    resized = PlainMaps([soft]).at(0, height=height, width=width)
    assert resized.shape == (1, 1, height, width)
    assert 0 <= resized.min() <= resized.max() <= 1
    np.testing.assert_array_equal(PlainMaps([soft]).at(0, height=7, width=5)[0, 0].numpy(), soft)


def test_logits_are_resized_before_the_sigmoid() -> None:
    logits = torch.tensor([[[[-30.0, 30.0]]], [[[0.0, 0.0]]]])  # 2,1,1,2
    maps = LogitMaps(logits)
    assert torch.equal(maps.at(0, height=1, width=2), logits[:1].sigmoid())
    middle = maps.at(0, height=1, width=4)
    assert torch.allclose(middle, torch.tensor([[[[-30.0, -15.0, 15.0, 30.0]]]]).sigmoid())
    assert torch.equal(maps.at(1, height=3, width=3), torch.full((1, 1, 3, 3), 0.5))
