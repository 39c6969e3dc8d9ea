"""Published numbers: found for the paper's own sets, and for no other."""

import pytest

from ldznet.published_numbers import PUBLISHED, PUBLISHED_TIMES, published_scores


def test_the_papers_main_row() -> None:
    (row,) = [row for row in published_scores("PhraseCut", "test") if row.system == "LD-ZNet"]
    assert (row.miou, row.iou_fg, row.ap) == (52.7, 60.0, 78.9)
    (row,) = [row for row in published_scores("aigi", "test") if row.system == "LD-ZNet"]
    assert (row.miou, row.iou_fg, row.ap) == (74.1, None, 89.6)


@pytest.mark.parametrize(
    ("data_set", "split"),
    [("phrasecut", "val"), ("photos_phrasecut", "test"), ("refcoco", "val"), ("scenes", "test")],
)
def test_no_row_for_what_is_not_the_papers(data_set: str, split: str) -> None:
    assert published_scores(data_set, split) == ()


def test_rows_are_whole_and_single() -> None:
    assert len(PUBLISHED) == 10 + 6 + 12
    assert len({(row.system, row.data_set) for row in PUBLISHED}) == len(PUBLISHED)
    figures = [
        value for row in PUBLISHED for value in (row.miou, row.iou_fg, row.ap, row.iou) if value is not None
    ]
    assert len(figures) == 24 + 12 + 24
    assert all(10 < value < 90 for value in figures)
    assert {time.system: time.milliseconds for time in PUBLISHED_TIMES}["LD-ZNet"] == 101
