"""Scores: exact counting, streaming, merging, intervals, bad input."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ldznet.errors import UserError
from ldznet.score_bins import ThresholdBins
from ldznet.score_results import Scores
from ldznet.scores import THRESHOLDS, SegmentationScores


def example(phrases: int, size: int = 16, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(phrases, 1, size, size, generator=generator) < 0.3
    logits = torch.randn(phrases, 1, size, size, generator=generator) * 2 + masks * 1.5 - 0.5
    return logits, masks


def counted(logits: Tensor, masks: Tensor, **options: object) -> SegmentationScores:
    scores = SegmentationScores()
    scores.update(logits, masks, **options)
    return scores


def naive(logits: Tensor, masks: Tensor, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """TP, FP, FN of each phrase by the definition."""
    positive = torch.sigmoid(logits.float()) > threshold
    truth = masks.bool()
    tp, fp, fn = (
        (part).flatten(1).sum(1).numpy() for part in (positive & truth, positive & ~truth, ~positive & truth)
    )
    return tp, fp, fn


def edge_probabilities() -> Tensor:
    """Each threshold in fp32, its neighbours on both sides, the ends, and the cell edges of the look-up."""
    edges = torch.tensor(THRESHOLDS)
    cells = torch.arange(257) / 256
    near = [torch.nextafter(values, torch.tensor(end)) for values in (edges, cells) for end in (0.0, 1.0)]
    return torch.cat([edges, cells, *near]).clamp(0, 1)


def test_bins_equal_the_comparison_at_every_edge() -> None:
    probabilities = edge_probabilities()
    expected = sum((probabilities > threshold).int() for threshold in THRESHOLDS)
    assert torch.equal(ThresholdBins(THRESHOLDS).exceeded(probabilities), expected)


@settings(max_examples=60, deadline=None)
@given(
    thresholds=st.lists(st.integers(1, 999), min_size=1, max_size=60, unique=True),
    values=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=80),
)
def test_bins_equal_the_comparison_for_any_thresholds(thresholds: list[int], values: list[float]) -> None:
    edges = sorted(step / 1000 for step in thresholds)
    probabilities = torch.cat([torch.tensor(values), torch.tensor(edges)])
    expected = sum((probabilities > threshold).int() for threshold in edges)
    assert torch.equal(ThresholdBins(edges).exceeded(probabilities), expected)


@pytest.mark.parametrize("thresholds", [(), (0.5, 0.4), (0.5, 0.5), (0.0, 0.5), (0.5, 1.0), (0.5, 0.500001)])
def test_thresholds_that_cannot_be_binned(thresholds: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="thresholds"):
        SegmentationScores(thresholds)


def test_scores_by_the_definition() -> None:
    logits, masks = example(9)
    scores = counted(logits, masks).compute(val_threshold=0.44, resamples=0)
    for index, threshold in enumerate(THRESHOLDS):
        tp, fp, fn = naive(logits, masks, threshold)
        assert scores.curve.miou[index] == pytest.approx((tp / (1 + tp + fp + fn)).mean())
        assert scores.curve.iou_fg[index] == pytest.approx(tp.sum() / (1 + (tp + fp + fn).sum()))
        assert scores.curve.precision[index] == pytest.approx(tp.sum() / (1 + (tp + fp).sum()))
        assert scores.curve.recall[index] == pytest.approx(tp.sum() / (1 + (tp + fn).sum()))
    assert scores.miou.best.value == max(scores.curve.miou)
    assert scores.miou.best.chosen == "best on this set"
    assert scores.miou.at_fixed.value == scores.curve.miou[THRESHOLDS.index(0.3)]
    assert scores.miou.at_val is not None
    assert scores.miou.at_val.value == scores.curve.miou[THRESHOLDS.index(0.44)]
    assert (scores.miou.at_val.threshold, scores.miou.at_val.chosen) == (0.44, "chosen on val")
    assert (scores.ap.low, scores.ap.high, scores.resamples) == (None, None, 0)


def test_standard_scores_by_the_definition() -> None:
    logits, masks = example(40, seed=3)
    tp, fp, fn = naive(logits, masks, 0.5)
    ious = tp / (tp + fp + fn)
    accumulator = counted(logits, masks)
    standard = accumulator.compute(resamples=0).standard
    assert standard.mean_iou.value == pytest.approx(ious.mean())
    assert standard.overall_iou.value == pytest.approx(tp.sum() / (tp + fp + fn).sum())
    assert {level: score.value for level, score in standard.precision_at.items()} == pytest.approx(
        {level: (ious >= float(level)).mean() for level in ("0.5", "0.6", "0.7", "0.8", "0.9")}
    )
    np.testing.assert_allclose(accumulator.phrase_ious(0.5), ious)


def test_precision_levels_differ_at_equality() -> None:
    """An IoU of exactly 0.7: referring sets count it at 0.7, PhraseCut does not."""
    masks = torch.zeros(1, 1, 2, 5, dtype=torch.bool)
    masks.view(-1)[:7] = True
    standard = counted(torch.full((1, 1, 2, 5), 4.0), masks).compute(resamples=0).standard
    assert standard.precision_at["0.7"].value == 1.0
    assert standard.precision_above["0.7"].value == 0.0
    assert standard.precision_above["0.6"].value == 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_type_of_logits(dtype: torch.dtype) -> None:
    logits, masks = example(3)
    low = logits.to(dtype)
    assert counted(low, masks).compute(resamples=0) == counted(low.float(), masks).compute(resamples=0)


def test_any_type_of_mask() -> None:
    logits, masks = example(3)
    expected = counted(logits, masks).compute(resamples=0)
    for same in (
        masks.float(),
        masks.to(torch.uint8),
        masks.to(torch.uint8) * 255,
        masks.long(),
        masks.half(),
    ):
        assert counted(logits, same).compute(resamples=0) == expected


def test_another_systems_masks() -> None:
    _, masks = example(4)
    predicted = masks.clone()
    predicted[:, :, :8] = False
    scores = SegmentationScores()
    scores.update_probabilities(predicted, masks)
    result = scores.compute(resamples=0)
    assert len(set(result.curve.miou)) == 1
    assert result.standard.overall_iou.value == pytest.approx(
        ((predicted & masks).sum() / (predicted | masks).sum()).item()
    )


def test_batches_and_sizes_do_not_matter() -> None:
    logits, masks = example(7)
    wide = example(2, 24, seed=1)
    whole = counted(logits, masks)
    whole.update(*wide)
    pieces = SegmentationScores()
    for start in range(7):
        pieces.update(logits[start : start + 1], masks[start : start + 1])
    for start in range(2):
        pieces.update(wide[0][start : start + 1], wide[1][start : start + 1])
    assert pieces.compute() == whole.compute()


def test_padding_counts_nowhere() -> None:
    logits, masks = example(6)
    weight = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    ids = [f"photo-{number}" for number in range(6)]
    kept = [0, 2, 3, 5]
    padded = counted(logits, masks, weight=weight, image_ids=ids)
    assert len(padded) == 4
    expected = counted(logits[kept], masks[kept], image_ids=[ids[number] for number in kept])
    assert padded.compute() == expected.compute()
    padded.update(logits, masks, weight=[0] * 6)
    assert len(padded) == 4


def ranks_of(logits: Tensor, masks: Tensor, ids: list[str] | None, ranks: int) -> list[SegmentationScores]:
    return [
        counted(logits[rank::ranks], masks[rank::ranks], image_ids=None if ids is None else ids[rank::ranks])
        for rank in range(ranks)
    ]


@settings(max_examples=20, deadline=None)
@given(phrases=st.integers(3, 12), ranks=st.integers(1, 3), named=st.booleans(), seed=st.integers(0, 99))
def test_merged_ranks_are_one_pass(phrases: int, ranks: int, named: bool, seed: int) -> None:
    logits, masks = example(phrases, 8, seed=seed)
    ids = [f"photo-{number // 3}" for number in range(phrases)] if named else None
    merged = SegmentationScores()
    for part in ranks_of(logits, masks, ids, ranks):
        merged.merge(SegmentationScores.from_state(part.state()))
    whole, together = counted(logits, masks, image_ids=ids).compute(resamples=0), merged.compute(resamples=0)
    assert (together.phrases, together.images) == (whole.phrases, whole.images)
    assert together.flat() == pytest.approx(whole.flat(), abs=1e-12)


def test_state_is_plain_arrays_and_complete() -> None:
    scores = counted(*example(5), image_ids=["a", "b", "a", "c", "b"])
    state = scores.state()
    assert all(array.dtype.kind in "fuU" for array in state.values())
    again = SegmentationScores.from_state(state)
    assert again.compute() == scores.compute()
    again.update(*example(1, seed=8), image_ids=["b"])
    assert (again.compute(resamples=0).images, len(again)) == (3, 6)


def test_merging_over_other_thresholds_is_refused() -> None:
    with pytest.raises(ValueError, match="thresholds"):
        SegmentationScores().merge(SegmentationScores((0.5,)))


def naive_interval(logits: Tensor, masks: Tensor, images: list[int]) -> tuple[float, float]:
    """The interval of IoU_FG at 0.3 by drawing images one by one."""
    generator = np.random.default_rng(5)
    tp, fp, fn = naive(logits, masks, 0.3)
    places = [[place for place, image in enumerate(images) if image == name] for name in sorted(set(images))]
    drawn = []
    for _ in range(1500):
        picks = generator.integers(len(places), size=len(places))
        chosen = [place for pick in picks for place in places[pick]]
        drawn.append(tp[chosen].sum() / (1 + (tp + fp + fn)[chosen].sum()))
    return tuple(np.percentile(drawn, (2.5, 97.5)))


def test_intervals_are_over_images() -> None:
    logits, masks = example(24, seed=2)
    # How well the mask is found depends on the image, hardly on the phrase.
    logits += masks * torch.linspace(-4, 8, 8).repeat_interleave(3).view(-1, 1, 1, 1)
    images = [number // 3 for number in range(24)]
    scores = counted(logits, masks, image_ids=[str(image) for image in images])
    score = scores.compute(resamples=3000).iou_fg.at_fixed
    assert (score.low, score.high) == pytest.approx(naive_interval(logits, masks, images), abs=0.01)
    apart = counted(logits, masks).compute(resamples=3000).iou_fg.at_fixed
    assert apart.high - apart.low < 0.8 * (score.high - score.low)


def test_intervals_are_seeded_and_hold_the_value() -> None:
    scores = counted(*example(20, seed=4))
    first, again, other = scores.compute(seed=1), scores.compute(seed=1), scores.compute(seed=2)
    assert first == again
    assert first.miou.best.low != other.miou.best.low
    for score in (first.ap, first.miou.at_fixed, first.iou_fg.best, first.standard.mean_iou):
        assert score.low is not None
        assert score.low <= score.value <= score.high


def test_one_image_has_an_interval_of_no_width() -> None:
    score = counted(*example(3), image_ids=["one"] * 3).compute().iou_fg.at_fixed
    assert score.low == pytest.approx(score.value)
    assert score.high == pytest.approx(score.value)


def test_nothing_predicted_scores_nothing() -> None:
    _, masks = example(2)
    scores = counted(torch.full(masks.shape, -20.0), masks).compute()
    assert (scores.ap.value, scores.miou.best.value, scores.standard.overall_iou.value) == (0, 0, 0)


def test_empty_truth_and_prediction() -> None:
    scores = counted(torch.full((1, 1, 4, 4), -20.0), torch.zeros(1, 1, 4, 4)).compute(resamples=10)
    assert scores.standard.mean_iou.value == 0
    assert scores.standard.overall_iou.value == 0


def test_memory_a_phrase() -> None:
    """At most 2 KB a phrase, names of images and room to grow included."""
    logits, masks = example(1, 8)
    scores = SegmentationScores()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(3000):
        scores.update(logits, masks, image_ids=[f"photos/{number:012d}.jpg"])
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert used / 3000 < 1024


def test_results_survive_json() -> None:
    scores = counted(*example(4)).compute(val_threshold=0.5)
    assert Scores.model_validate_json(scores.model_dump_json()) == scores


def test_flat_names() -> None:
    flat = counted(*example(4)).compute(val_threshold=0.5).flat()
    assert {
        "miou_best",
        "miou_at_0.3",
        "miou_at_val",
        "iou_fg_best_low",
        "ap_high",
        "standard_pr_0.9",
    } <= set(flat)
    assert flat["miou_at_val_threshold"] == 0.5
    assert all(isinstance(value, float) for value in flat.values())


def test_curve_rises_and_falls() -> None:
    recall = counted(*example(5)).compute(resamples=0).curve.recall
    assert all(after <= before for before, after in pairwise(recall))


def test_nothing_counted() -> None:
    with pytest.raises(UserError, match="no phrase was scored"):
        SegmentationScores().compute()


@pytest.mark.parametrize("name", ["val_threshold", "fixed_threshold", "standard_threshold"])
def test_a_threshold_that_was_not_counted_at(name: str) -> None:
    with pytest.raises(UserError, match=r"threshold 0\.333 was not counted at; the nearest is 0\.34"):
        counted(*example(1)).compute(**{name: 0.333})


def test_bad_input_leaves_no_count() -> None:
    logits, masks = example(2)
    scores = SegmentationScores()
    spoiled = logits.clone()
    spoiled[1, 0, 3, 3] = float("nan")
    for arguments, options in (
        ((spoiled, masks), {}),
        ((logits, masks[:1]), {}),
        ((logits[:, 0], masks[:, 0]), {}),
        ((logits, masks), {"weight": [0.5, 1]}),
        ((logits, masks), {"weight": [1]}),
        ((logits, masks), {"image_ids": ["a"]}),
        ((logits, masks), {"image_ids": ["a", ""]}),
    ):
        with pytest.raises(ValueError, match="scores"):
            scores.update(*arguments, **options)
    with pytest.raises(ValueError, match="outside"):
        scores.update_probabilities(logits * 10, masks)
    assert len(scores) == 0
