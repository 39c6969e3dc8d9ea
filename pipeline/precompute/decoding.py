"""Decodes the images of a shard ahead of the networks, on threads, in a stable order and with bounded memory."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, Full, Queue
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

_Group = TypeVar("_Group")
_Item = TypeVar("_Item")
_PATIENCE_S = 0.2  # a blocked thread looks so often whether it shall stop


@dataclass(frozen=True, slots=True)
class _End:
    """A group is done; with the error that ended it, where one did."""

    error: Exception | None = None


_DONE: Final = _End()


class DecodeAhead(Generic[_Group, _Item]):
    """The items of groups, in order, made by threads that run ahead until so many items wait.

    Group `i` goes to thread `i mod threads`, and each thread has a queue of its own: so the order is that of the
    groups whatever the threads' speed. Pillow and the store release the interpreter's lock, hence threads.
    """

    def __init__(
        self,
        groups: Sequence[_Group],
        make: Callable[[_Group], Iterator[_Item]],
        *,
        threads: int,
        ahead: int,
    ) -> None:
        """Nothing runs before `with`.

        Args:
            groups: what is decoded, a photo's members each.
            make: the items of a group; called on the threads.
            threads: how many.
            ahead: items that may wait, of all threads together; each thread holds one more.
        """
        self._groups, self._make = groups, make
        self._stop = threading.Event()
        threads = max(1, min(threads, len(groups)))
        self._queues: list[Queue[_Item | _End]] = [Queue(max(1, ahead // threads)) for _ in range(threads)]
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"decode-{number}", daemon=True)
            for number in range(threads)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for queue in self._queues:
            _empty(queue)
        for thread in self._threads:
            thread.join()

    def __iter__(self) -> Iterator[_Item]:
        """Items in order. What a thread raised is raised at its place."""
        for number in range(len(self._groups)):
            queue = self._queues[number % len(self._queues)]
            while not isinstance(item := queue.get(), _End):
                yield item
            if item.error is not None:
                raise item.error

    def _run(self, number: int) -> None:
        for group in self._groups[number :: len(self._queues)]:
            try:
                for item in self._make(group):
                    if not self._put(number, item):
                        return
            except Exception as error:  # noqa: BLE001 - raised again where the items are taken
                self._put(number, _End(error))
                return
            if not self._put(number, _DONE):
                return

    def _put(self, number: int, item: _Item | _End) -> bool:
        """Hand over, waiting for a place; False where nobody takes any more."""
        while not self._stop.is_set():
            try:
                self._queues[number].put(item, timeout=_PATIENCE_S)
            except Full:
                continue
            return True
        return False


def _empty(queue: "Queue[_Item | _End]") -> None:
    try:
        while True:
            queue.get_nowait()
    except Empty:
        return
