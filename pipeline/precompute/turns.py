"""One thread that takes calls in turns: of those that wait, one of the earliest turn goes first.

Shards that share the networks each hold a turn. Were their passes taken as they come, two shards that began together
would go in step, end together, and leave the device idle while both upload and the next two decode. So the elder goes
first, and the younger has the gaps: when the elder uploads, the younger has all of its passes before it.
"""

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, PriorityQueue
from typing import Any, TypeVar

_T = TypeVar("_T")
_CLOSE = -1  # before every turn


@dataclass(order=True, frozen=True, slots=True)
class _Call:
    turn: int
    number: int  # among those of a turn the first that came
    future: "Future[Any]" = field(compare=False)
    act: Callable[[], Any] = field(compare=False)


class TurnThread:
    """Runs calls, each to its end, earlier turns first."""

    def __init__(self, name: str, *, begin: Callable[[], None]) -> None:
        """Start the thread.

        Args:
            name: the thread's.
            begin: called once on the thread, before all others.
        """
        self._waiting: PriorityQueue[_Call] = PriorityQueue()
        self._turns, self._numbers = itertools.count(), itertools.count()
        self._door = threading.Lock()
        self.closed = False  # takes no more calls
        self._thread = threading.Thread(target=self._run, args=(begin,), name=name, daemon=True)
        self._thread.start()

    def next_turn(self) -> int:
        """A turn after all others so far."""
        return next(self._turns)

    def submit(self, turn: int, act: Callable[[], _T]) -> "Future[_T]":
        """Hand in a call. `RuntimeError` after `close`."""
        future: Future[_T] = Future()
        with self._door:
            if self.closed:
                raise RuntimeError("the thread takes no more calls")
            self._waiting.put(_Call(turn, next(self._numbers), future, act))
        return future

    def close(self) -> None:
        """Wait for the call that runs; those that wait are cancelled, and the thread ends."""
        with self._door:
            self._waiting.put(_Call(_CLOSE, next(self._numbers), Future(), lambda: None))
            self.closed = True
        self._thread.join()

    def _run(self, begin: Callable[[], None]) -> None:
        begin()
        while (call := self._waiting.get()).turn != _CLOSE:
            if call.future.set_running_or_notify_cancel():
                _answer(call)
        try:
            while True:
                self._waiting.get_nowait().future.cancel()
        except Empty:
            return


def _answer(call: _Call) -> None:
    try:
        answer = call.act()
    except BaseException as error:  # noqa: BLE001 - raised again where the answer is taken
        call.future.set_exception(error)
    else:
        call.future.set_result(answer)
