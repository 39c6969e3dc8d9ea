"""Progress on long work: a bar on a terminal, a log line now and then elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 15.0


@contextmanager
def progress_bar(title: str, *, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show how far `title` is. The function it gives takes how many more are done."""
    if sys.stderr.isatty():
        with _terminal_bar(title, total=total, unit=unit) as advance:
            yield advance
    else:
        yield _log_lines(title, total=total, unit=unit)


@contextmanager
def _terminal_bar(title: str, *, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)


def _log_lines(title: str, *, total: int, unit: str) -> Callable[[int], None]:
    started = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            left = (now - started) / max(done, 1) * (total - done)
            logger.info("%s: %d of %d %s, %.0f s left", title, done, total, unit, left)

    return advance
