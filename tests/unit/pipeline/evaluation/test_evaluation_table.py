"""The table and the JSON: every figure under its name, and the paper's beside what is the paper's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ldznet.scores import SegmentationScores
from pipeline.evaluation.paper_rows import is_the_papers, paper_rows
from pipeline.evaluation.run import Evaluation, Result
from pipeline.report.experiment import _split_title


def result(**changes: Any) -> Result:
    generator = torch.Generator().manual_seed(0)
    counted = SegmentationScores()
    masks = torch.rand(6, 1, 8, 8, generator=generator) < 0.4
    counted.update(torch.randn(6, 1, 8, 8, generator=generator) + 2 * masks, masks, image_ids=list("aabbcc"))
    phrases = changes.pop("phrases", 6)
    scores = counted.compute(val_threshold=0.44, resamples=20).model_copy(update={"phrases": phrases})
    given = {
        "model": "ldznet", "kind": "ldznet", "parameters": 9, "set_name": "test", "data_set": "phrasecut",
        "split": "test", "protocol": "clipseg", "manifest_id": "m", "scores": scores, "seconds_per_sample": 0.1,
    }  # fmt: skip
    return Result(**(given | changes))


def cells(table: str, start: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.strip().startswith(start)][:1]
    return [cell.strip() for cell in line.strip().split("  ") if cell.strip()]


def test_every_figure_stands_under_its_name() -> None:
    one = result()
    table = Evaluation(results=[one]).table()
    head, row = cells(table, "model"), cells(table, "ldznet")
    shown = dict(zip(head, row, strict=True))
    for name, score in (
        ("mIoU best", one.scores.miou.best),
        ("mIoU @0.3", one.scores.miou.at_fixed),
        ("mIoU @val", one.scores.miou.at_val),
        ("IoU_FG @val", one.scores.iou_fg.at_val),
        ("AP", one.scores.ap),
    ):
        assert shown[name] == f"{100 * score.value:.1f} ±{50 * (score.high - score.low):.1f}"
    assert "published" not in table
    standard = next(line for line in reversed(table.splitlines()) if line.strip().startswith("ldznet"))
    assert standard.split()[3:5] == ["0.5", f"{100 * one.scores.standard.mean_iou.value:.1f}"]
    at_val = Evaluation(results=[result(standard_at_val=True)])
    assert "0.5 (val)" in at_val.table()
    assert {"standard_mean_iou_at_val", "standard_overall_iou_at_val"} < set(at_val.results[0].figures())


def test_original_size_has_a_part_of_its_own() -> None:
    table = Evaluation(results=[result(), result(protocol="original")]).table()
    assert "Standard IoU at original size" in table
    assert "Standard IoU, photos squashed" not in table
    assert "CLIPSeg's protocol" not in Evaluation(results=[result(protocol="original")]).table()


def test_plain_masks_have_no_ap() -> None:
    one = result(plain_masks=True)
    assert cells(Evaluation(results=[one]).table(), "ldznet")[-1] == "-"
    assert not [name for name in one.figures() if name.startswith("ap")]
    assert "ap_low" in result().figures()


@pytest.mark.parametrize(
    ("data_set", "split", "phrases", "expected"),
    [
        ("phrasecut", "test", 14_354, True),
        ("PhraseCut", "test", 14_300, True),
        ("phrasecut", "test", 24, False),  # its layout only
        ("phrasecut", "val", 20_316, False),
        ("aigi", "test", 214, True),
        ("aigi", "test", 215, False),
        ("refcoco", "testA", 5_657, False),  # no source names the paper's split
    ],
)
def test_a_set_is_the_papers_by_name_split_and_size(
    data_set: str, split: str, phrases: int, expected: bool
) -> None:
    assert is_the_papers(data_set, split, phrases=phrases) == expected
    assert bool(paper_rows("test", data_set, split, phrases=phrases)) == expected


def test_the_papers_figures_stand_beside_ours(tmp_path: Path) -> None:
    evaluation = Evaluation(results=[result(phrases=14_354), result(phrases=14_354, protocol="original")])
    table = evaluation.table()
    assert cells(table, "LD-ZNet, published") == ["LD-ZNet, published", "test", "52.7", "60.0", "78.9"]
    line = next(line for line in table.splitlines() if "CLIPSeg (PC, D=128), published" in line)
    head = next(line for line in table.splitlines() if "mIoU best" in line)
    assert line.index("48.2") == head.index("mIoU @0.3")  # its threshold is fixed
    assert line.index("56.5") == head.index("IoU_FG @0.3")
    evaluation.save(tmp_path / "evaluation.json")
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert len(content["results"]) == 2
    (ours,) = [row for row in content["published"] if row["system"] == "LD-ZNet"]
    assert (ours["miou"], ours["iou_fg"], ours["ap"]) == (52.7, 60.0, 78.9)
    assert ours["note"] == "best threshold on the test set itself"


def test_a_reports_split_meets_the_papers_only_where_it_is_the_papers() -> None:
    assert _split_title(result(phrases=14_354)) == "test"
    assert _split_title(result(phrases=14_354, set_name="large")) == "test"
    assert _split_title(result()) == "test (6 phrases, not the paper's)"
    assert _split_title(result(protocol="original")) == "test, original size"
    assert _split_title(result(data_set="boxes", set_name="near")) == "near (test)"
