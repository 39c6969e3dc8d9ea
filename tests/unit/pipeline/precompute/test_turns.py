"""One thread for several: the earliest turn that waits goes first, errors go to who asked, closing drops the rest."""

import threading
from concurrent.futures import CancelledError, Future

import pytest

from pipeline.precompute.turns import TurnThread


class Held:
    """A thread that is held up until it is let go, so that calls wait."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._held, self._go = threading.Event(), threading.Event()
        self.thread = TurnThread("held", begin=lambda: self.begun.append(threading.current_thread().name))
        self.turns = [self.thread.next_turn() for _ in range(3)]
        self.first = self.thread.submit(self.turns[2], self._hold)
        self._held.wait(timeout=60)

    def _hold(self) -> bool:
        self._held.set()
        return self._go.wait(timeout=60)

    def let_go(self) -> None:
        self._go.set()


def test_earlier_turns_go_first_and_each_in_its_own_order() -> None:
    held, done = Held(), list[str]()
    calls: list[Future[None]] = []
    for turn, name in ((2, "c1"), (1, "b1"), (0, "a1"), (1, "b2"), (0, "a2"), (2, "c2")):
        calls.append(held.thread.submit(held.turns[turn], lambda name=name: done.append(name)))
    held.let_go()
    for call in calls:
        call.result(timeout=60)
    held.thread.close()
    assert done == ["a1", "a2", "b1", "b2", "c1", "c2"]
    assert held.begun == ["held"]


def test_an_error_is_raised_where_the_answer_is_taken_and_the_thread_goes_on() -> None:
    held = Held()
    broken = held.thread.submit(held.turns[0], lambda: 1 / 0)
    sound = held.thread.submit(held.turns[0], lambda: 7)
    held.let_go()
    with pytest.raises(ZeroDivisionError):
        broken.result(timeout=60)
    assert sound.result(timeout=60) == 7
    held.thread.close()


def test_closing_waits_for_what_runs_and_drops_what_waits() -> None:
    held = Held()
    waiting = held.thread.submit(held.turns[0], lambda: 7)
    closing = threading.Thread(target=held.thread.close)
    closing.start()
    while not held.thread.closed:
        pass
    held.let_go()
    closing.join(timeout=60)
    assert held.first.result(timeout=60) is True
    with pytest.raises(CancelledError):
        waiting.result(timeout=60)
    with pytest.raises(RuntimeError, match="no more calls"):
        held.thread.submit(held.turns[0], lambda: 7)
