"""Our scores against the outputs of CLIPSeg's own evaluation code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ldznet.score_results import Scores
from ldznet.scores import SegmentationScores

SMALL_COPY = Path(__file__).parent / "data" / "clipseg_metrics.json"
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "reference"
TOLERANCE = 1e-6


def assert_agrees(scores: Scores, expected: Mapping[str, Any]) -> None:
    curve = scores.curve
    assert scores.ap.value == pytest.approx(expected["ap"], abs=TOLERANCE)
    for ours, name, all_scores in (
        (curve.miou, "miou", "mean_iou_scores"),
        (curve.iou_fg, "fgiou", "fgiou_scores"),
        (curve.iou_binary, "biniou", "biniou_scores"),
    ):
        assert ours == pytest.approx(expected[all_scores], abs=TOLERANCE)
        assert max(ours) == pytest.approx(expected[f"{name}_best"], abs=TOLERANCE)
        assert curve.thresholds[ours.index(max(ours))] == pytest.approx(expected[f"{name}_best_t"])
        for fixed in (0.1, 0.2, 0.3, 0.5):
            at = ours[round(fixed * 50) - 1]
            assert at == pytest.approx(expected[f"{name}_{fixed}"], abs=TOLERANCE)
    assert scores.miou.best.value == pytest.approx(expected["miou_best"], abs=TOLERANCE)
    assert scores.miou.best.threshold == pytest.approx(expected["miou_best_t"])
    assert scores.miou.at_fixed.value == pytest.approx(expected["miou_0.3"], abs=TOLERANCE)
    assert scores.iou_fg.best.value == pytest.approx(expected["fgiou_best"], abs=TOLERANCE)
    assert scores.iou_fg.at_fixed.value == pytest.approx(expected["fgiou_0.3"], abs=TOLERANCE)


def test_small_copy_in_the_project() -> None:
    """Pixels laid out anew from how many thresholds each exceeds: every count is the reference's own."""
    copy = json.loads(SMALL_COPY.read_text())
    scores = SegmentationScores()
    middles = (torch.arange(50) + 0.5) / 50
    for phrase in copy["pixels_exceeding"]:
        halves = [
            middles.repeat_interleave(torch.tensor(phrase[half])) for half in ("foreground", "background")
        ]
        logits = torch.logit(torch.cat(halves)).view(1, 1, 64, 64)
        masks = torch.zeros(64 * 64, dtype=torch.bool)
        masks[: len(halves[0])] = True
        scores.update(logits, masks.view(1, 1, 64, 64))
    assert_agrees(scores.compute(resamples=0), copy["expected"])


@pytest.mark.parametrize("batch", [1, 5, 14])
def test_outputs_of_clipsegs_code(batch: int) -> None:
    if not (SHARED / "clipseg_metrics.json").is_file():
        pytest.skip("the shared reference outputs are not beside the checkout")
    expected = json.loads((SHARED / "clipseg_metrics.json").read_text())
    tensors = load_file(SHARED / "clipseg_metrics.safetensors")
    scores = SegmentationScores()
    for start in range(0, 14, batch):
        scores.update(tensors["logits"][start : start + batch], tensors["masks"][start : start + batch])
    assert_agrees(scores.compute(resamples=0), expected)
