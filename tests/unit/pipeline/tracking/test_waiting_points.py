"""Metrics that wait for MLflow: each owner's for itself, and what a full disk costs."""

import logging
from pathlib import Path

import pytest
from unit.pipeline.tracking.full_disk import files_of_at_most, points

from pipeline.tracking.spool import MetricPoint, MetricSpool
from pipeline.tracking.waiting_points import WaitingPoints


class Server:
    """Takes points while it is there."""

    def __init__(self, *, there: bool = True) -> None:
        self.there = there
        self.taken: list[MetricPoint] = []

    def __call__(self, given: list[MetricPoint]) -> bool:
        self.taken += given if self.there else []
        return self.there


def waiting_of(folder: Path, owner: str) -> WaitingPoints:
    made = WaitingPoints(folder)
    made.name_after(owner)
    return made


def test_each_owner_takes_up_what_it_left(tmp_path: Path) -> None:
    one, other = waiting_of(tmp_path, "one"), waiting_of(tmp_path, "other")
    one.write(points(1))
    other.write(points(2))
    one.gather()
    one.write(points(3))
    for owner, expected in (("one", points(1, 3)), ("other", points(2)), ("third", [])):
        server, again = Server(), waiting_of(tmp_path, owner)
        again.gather()
        again.send([], server)
        assert server.taken == expected
    assert not list(tmp_path.iterdir())


def test_a_loss_is_warned_of_once_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    waiting = waiting_of(tmp_path, "one")
    waiting.write(points(1))
    with files_of_at_most(0):
        waiting.write(points(2, 3))
        waiting.write(points(4))
        waiting.send(points(5), Server(there=False))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "metric values are lost" in caplog.text
    caplog.clear()
    waiting.report("at the end")
    assert "at the end: 1 metric values are kept in" in caplog.text
    assert f"4 metric values are lost: {tmp_path} took no more" in caplog.text


def test_what_leaves_makes_room_for_what_stayed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    waiting, server = waiting_of(tmp_path, "one"), Server(there=False)
    waiting.send(points(1), server)
    waiting.write(points(2))
    with files_of_at_most(0):
        assert not waiting.gather()
        assert not waiting.gather()
        server.there = True
        waiting.send([], server)
        assert waiting.gather()
        waiting.send([], server)
    assert server.taken == points(1, 2)
    assert caplog.text.count("have to stay where they are") == 1
    caplog.clear()
    waiting.report("at the end")
    assert caplog.text == ""


def test_points_that_left_are_not_called_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    waiting, server = waiting_of(tmp_path, "one"), Server()
    (tmp_path / "metrics-spool-one.jsonl").mkdir()  # cannot be removed
    waiting.send(points(1), server)
    waiting.report("at the end")
    assert server.taken == points(1)
    assert "lost" not in caplog.text


def test_points_that_are_kept_leave_after_those_in_the_spool(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, server = waiting_of(tmp_path, "one"), Server()
    waiting.keep([])
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as unread:
        unread.setattr(MetricSpool, "read", None)
        waiting.keep(points(1))
        waiting.keep(points(2))
    with files_of_at_most(0):
        waiting.keep(points(3))
    assert "metric values are lost" in caplog.text
    waiting.send(points(4), server)
    assert server.taken == points(1, 2, 4)
