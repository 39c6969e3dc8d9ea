"""What `ldznet demo` says at its end: every row's own figures and number of phrases."""

from typing import Any

import torch

from jobs.demo import _scores
from ldznet.scores import SegmentationScores
from pipeline.evaluation.run import Evaluation, Result


def result(**given: Any) -> Result:
    generator = torch.Generator().manual_seed(0)
    counted = SegmentationScores()
    masks = torch.rand(6, 1, 8, 8, generator=generator) < 0.4
    counted.update(torch.randn(6, 1, 8, 8, generator=generator) + 2 * masks, masks, image_ids=list("aabbcc"))
    phrases = given.pop("phrases")
    scores = counted.compute(val_threshold=0.44, resamples=20).model_copy(update={"phrases": phrases})
    return Result(
        kind="ldznet",
        parameters=9,
        data_set="folder",
        split="foreign",
        protocol="clipseg",
        manifest_id="m",
        scores=scores,
        seconds_per_sample=0.1,
        **given,
    )


def test_each_row_has_its_miou_its_ap_and_its_number_of_phrases() -> None:
    rows = [
        result(model="scenes-128-ldznet", set_name="foreign", phrases=340),
        result(model="ldznet-adapted", set_name="hidden", phrases=274),
    ]
    lines = _scores(Evaluation(results=rows)).splitlines()
    assert len(lines) == 2
    for line, row in zip(lines, rows, strict=True):
        assert line.split()[:4] == [row.set_name, str(row.scores.phrases), "phrases", row.model]
        assert line.endswith(f"mIoU {row.scores.miou.at_val}  AP {row.scores.ap}")
