"""Metrics that MLflow does not have yet: the files that they wait in, and what becomes of them on a full disk."""

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.tracking.spool import MetricPoint, MetricSpool

log = logging.getLogger(__name__)


class WaitingPoints:
    """The points of one owner on their way to MLflow, in two files of a folder that several owners share.

    `metrics-journal-OWNER.jsonl` takes a point at once; `metrics-spool-OWNER.jsonl` holds those that are to leave, and
    those that MLflow did not take. A folder that takes no more, as on a full disk, ends no training: the first loss is
    warned of, all are counted. Several threads may write.

    Args:
        folder: The run's folder on this machine.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writing = threading.Lock()  # held while the journal is written, or handed over
        self._counting = threading.Lock()
        self._lost = 0
        self._stayed = False
        self.name_after(None)

    def name_after(self, owner: str | None) -> None:
        """Whose points these are. What an earlier process left for the same owner is taken up."""
        self._spool = MetricSpool.of(self._folder, owner)
        self._journal = MetricSpool.journal_of(self._folder, owner)

    def set_aside(self) -> None:
        """Keep what was left by someone without a name: it is not ours, but nobody else's either."""
        self._spool.set_aside()

    def hand_over(self, owner: str) -> None:
        """Give what waits here to an owner who has a name by now."""
        self._spool.hand_over(MetricSpool.of(self._folder, owner))
        self.name_after(owner)

    def write(self, points: Sequence[MetricPoint]) -> None:
        """Put points into the journal, which a process that is killed leaves behind."""
        try:
            with self._writing:
                self._journal.append(points)
        except OSError as error:
            self._failed(error, lost=len(points))

    def gather(self) -> bool:
        """Move the journal's points into the spool. False where that takes no more: they stay in the journal."""
        try:
            with self._writing:
                self._journal.hand_over(self._spool)
        except OSError as error:
            self._failed(error)
            return False
        return True

    def send(self, fresh: list[MetricPoint], deliver: Callable[[list[MetricPoint]], bool]) -> None:
        """Deliver what is in the spool, and after it fresh points, which are kept there where that fails."""
        try:
            if not fresh and not self._spool.path.exists():
                return
            if deliver(self._spool.read() + fresh):
                fresh = []
                self._spool.clear()
            else:
                self._spool.append(fresh)
        except OSError as error:
            self._failed(error, lost=len(fresh))

    def keep(self, fresh: Sequence[MetricPoint]) -> None:
        """Put fresh points behind those in the spool, unread: while MLflow is away it grows long."""
        try:
            self._spool.append(fresh)
        except OSError as error:
            self._failed(error, lost=len(fresh))

    def report(self, why: str) -> None:
        """Say at the end how many points are still here, because of what, and how many are lost."""
        for file in (self._spool, self._journal):
            try:
                left = len(file)
            except OSError as error:
                log.warning("%s cannot be read: %s", file.path, error)
                continue
            if left:
                log.warning("%s: %d metric values are kept in %s", why, left, file.path)
        if self._lost:
            log.warning("%d metric values are lost: %s took no more", self._lost, self._folder)

    def _failed(self, error: OSError, *, lost: int = 0) -> None:
        with self._counting:
            first = not self._lost if lost else not self._stayed
            self._lost += lost
            self._stayed = self._stayed or not lost
        log.log(
            logging.WARNING if first else logging.DEBUG,
            "%s (%s: %s); the run goes on",
            "metric values are lost" if lost else "metric values have to stay where they are",
            self._folder,
            error,
        )
