"""Decoding ahead: in order, no further ahead than allowed, and gone when nobody takes any more."""

import threading
import time
from collections.abc import Iterator

import pytest

from pipeline.precompute.decoding import DecodeAhead


def three(group: int) -> Iterator[str]:
    time.sleep(0.002 * (group % 3))  # some are slower than others
    for number in range(group % 4):
        yield f"{group}.{number}"


@pytest.mark.parametrize("threads", [1, 2, 5, 100])
def test_items_come_in_the_order_of_their_groups(threads: int) -> None:
    groups = range(40)
    with DecodeAhead(groups, three, threads=threads, ahead=4) as items:
        assert list(items) == [item for group in groups for item in three(group)]


def test_no_groups_no_items() -> None:
    with DecodeAhead([], three, threads=2, ahead=4) as items:
        assert list(items) == []


def test_threads_run_ahead_so_far_and_no_further() -> None:
    made, paused = [], threading.Semaphore(0)

    def make(group: int) -> Iterator[int]:
        for number in range(10):
            made.append((group, number))
            paused.release()
            yield number

    threads, ahead = 2, 6
    with DecodeAhead(range(20), make, threads=threads, ahead=ahead) as items:
        taken = 0
        for _ in items:
            taken += 1
            assert len(made) <= taken + ahead + threads
            if taken == 1:
                for _ in range(ahead):  # they do run ahead
                    assert paused.acquire(timeout=30)
    assert taken == len(made) == 200


def test_an_error_is_raised_at_its_place() -> None:
    def make(group: int) -> Iterator[int]:
        yield group
        if group in {3, 4}:
            raise ValueError(f"group {group}")

    before, seen = set(threading.enumerate()), []
    with (
        pytest.raises(ValueError, match="group 3"),
        DecodeAhead(range(9), make, threads=3, ahead=3) as items,
    ):
        seen += items  # extends as it goes
    assert set(threading.enumerate()) <= before  # others' threads may end meanwhile


def test_who_stops_taking_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    with DecodeAhead(range(100), three, threads=3, ahead=3) as items:
        assert next(iter(items)) == "1.0"
        assert len(set(threading.enumerate()) - before) == 3
    assert set(threading.enumerate()) <= before  # others' threads may end meanwhile
