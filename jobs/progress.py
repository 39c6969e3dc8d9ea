"""Progress on long work: a bar on a terminal, a log line now and then elsewhere."""

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.precompute.progress import Progress, Snapshot

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 15.0
MAX_WORKERS_SHOWN = 4


@contextmanager
def progress_bar(title: str, *, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show how far `title` is. The function it gives takes how many more are done."""
    if sys.stderr.isatty():
        with _terminal_bar(title, total=total, unit=unit) as advance:
            yield advance
    else:
        yield _log_lines(title, total=total, unit=unit)


@contextmanager
def show_progress(title: str, progress: "Progress") -> Iterator[None]:
    """Show how far a run of shards is: a bar on a terminal, a log line now and then elsewhere."""
    if sys.stderr.isatty():
        with _shard_bar(title) as show:
            progress.listen(show)
            yield
    else:
        progress.listen(_shard_lines(title))
        yield


def describe(snapshot: "Snapshot") -> str:
    """One line: how far, how quick, how long yet, what was left out and why, what the workers are at."""
    line = str(snapshot)
    if snapshot.reasons:
        reason, times = snapshot.reasons[0]
        line += f" (mostly: {reason}, {times} times)" if len(snapshot.reasons) > 1 else f" ({reason})"
    return f"{line}; workers: {_workers(snapshot)}"


def _workers(snapshot: "Snapshot") -> str:
    """Each worker by itself where they are few, else how many are at what."""
    workers = snapshot.workers
    if not workers:
        return "starting"
    if len(workers) <= MAX_WORKERS_SHOWN:
        return ", ".join(str(worker) for worker in workers)
    stages = Counter(shard.stage for worker in workers for shard in worker.shards)
    idle = sum(not worker.shards for worker in workers)
    parts = [f"{count} {stage}" for stage, count in sorted(stages.items())]
    return f"{len(workers)} with shards {', '.join(parts) or 'none'}; {idle} idle"


@contextmanager
def _shard_bar(title: str) -> Iterator[Callable[["Snapshot"], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, told="starting")

        def show(snapshot: "Snapshot") -> None:
            bar.update(
                task, total=snapshot.members_total, completed=snapshot.members, told=describe(snapshot)
            )

        yield show


def _shard_lines(title: str) -> Callable[["Snapshot"], None]:
    last = 0.0

    def show(snapshot: "Snapshot") -> None:
        nonlocal last
        if snapshot.seconds - last >= SECONDS_BETWEEN_LINES:
            last = snapshot.seconds
            logger.info("%s: %s", title, describe(snapshot))

    return show


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
