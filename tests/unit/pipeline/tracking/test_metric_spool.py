"""The file that keeps metrics: after a crash, and on a disk that takes no more."""

from pathlib import Path

import pytest
from unit.pipeline.tracking.full_disk import files_of_at_most, points

from pipeline.tracking.spool import MetricSpool


def test_a_line_that_was_cut_short_does_not_swallow_the_next(tmp_path: Path) -> None:
    spool = MetricSpool(tmp_path / "spool.jsonl")
    spool.append(points(1))
    with spool.path.open("a") as file:
        file.write('{"key": "loss", "val')
    spool.append(points(2, 3))
    assert spool.read() == points(1, 2, 3)


def test_points_are_kept_all_or_none(tmp_path: Path) -> None:
    spool = MetricSpool(tmp_path / "folder" / "spool.jsonl")
    spool.append(points(1))
    before = spool.path.read_bytes()
    with files_of_at_most(2 * len(before) + 5), pytest.raises(OSError, match="too large"):
        spool.append(points(2, 3))
    assert spool.path.read_bytes() == before
    spool.append(points(4))
    assert spool.read() == points(1, 4)


def test_no_points_make_no_file(tmp_path: Path) -> None:
    MetricSpool(tmp_path / "spool.jsonl").append([])
    assert not list(tmp_path.iterdir())


def test_points_move_into_an_empty_spool_without_room(tmp_path: Path) -> None:
    journal, spool = MetricSpool(tmp_path / "journal.jsonl"), MetricSpool(tmp_path / "spool.jsonl")
    journal.append(points(1, 2))
    with files_of_at_most(0):
        journal.hand_over(spool)
    assert (journal.read(), spool.read()) == ([], points(1, 2))
    journal.append(points(3))
    with files_of_at_most(0), pytest.raises(OSError, match="too large"):
        journal.hand_over(spool)
    assert (journal.read(), spool.read()) == (points(3), points(1, 2))
    journal.hand_over(spool)
    assert (journal.read(), spool.read()) == ([], points(1, 2, 3))
