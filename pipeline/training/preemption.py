"""Notice that this process is to leave soon: SIGTERM, or whatever else a cluster tells.

The loop asks after every step, and all ranks leave together once one of them has a notice: they write a checkpoint,
wait until it is in its store, and raise `Preempted`.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EXIT_CODE = 75  # EX_TEMPFAIL: not done, and nothing is wrong; start it again


class Preempted(SystemExit):
    """The ranks left on notice. Uncaught, it ends a plain process with `EXIT_CODE`."""

    def __init__(self, step: int, checkpoint: str | None) -> None:
        super().__init__(EXIT_CODE)
        self.step = step
        self.checkpoint = checkpoint

    def __str__(self) -> str:
        kept = f"checkpoint {self.checkpoint}" if self.checkpoint else "no checkpoint is kept"
        return f"left on notice after step {self.step}; {kept}"

    def __reduce__(self) -> tuple[type["Preempted"], tuple[int, str | None]]:
        """Rebuild across processes."""
        return (Preempted, (self.step, self.checkpoint))


class _Notice:
    """One a process, as signals are."""

    def __init__(self) -> None:
        self.given = False
        self.others: list[Callable[[], bool]] = []


_notice = _Notice()


def noticed() -> bool:
    """Whether this process was told to leave."""
    return _notice.given or any(other() for other in _notice.others)


def listen() -> None:
    """Take SIGTERM for a notice from now on. Only the main thread may call it."""
    _notice.given = False
    signal.signal(signal.SIGTERM, _take_notice)


@contextmanager
def listening() -> Iterator[None]:
    """Take SIGTERM for a notice inside, where this is the main thread; elsewhere someone else must `listen`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    listen()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
        _notice.given = False


@contextmanager
def told_by(other: Callable[[], bool]) -> Iterator[None]:
    """Inside, a second source of notices is asked too."""
    _notice.others.append(other)
    try:
        yield
    finally:
        _notice.others.remove(other)


def _take_notice(*_: object) -> None:
    _notice.given = True  # and nothing else: a signal may come anywhere
