"""Tracking that a training never waits for: metrics go to a local file at once, and leave for MLflow from a thread."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from pipeline.tracking.config import TrackingConfig
from pipeline.tracking.spool import MetricPoint
from pipeline.tracking.tracker import Status, Tracker

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_SENDS = 5.0
_MOST_PICTURES = 32  # waiting; further ones are left out, and counted


class BackgroundTracker(Tracker):
    """A tracker for the ranks of a training: `start`, `log_metrics` and `log_pictures` return at once.

    A metric is in a file before `log_metrics` returns, so a killed process loses none: the next one that takes up the
    run on this machine delivers what is left, and nothing twice. The same file bridges the time that MLflow is slow or
    away. Without a run (MLflow was away when the training began) all metrics stay in the owner's file; who makes the
    owner's run later, on this machine, delivers them. A disk that is full loses metrics, and ends nothing.
    """

    def __init__(self, config: TrackingConfig, *, folder: Path) -> None:
        super().__init__(config, folder=folder)
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._runless = False
        self._left_out = 0
        self._error: BaseException | None = None

    def start(
        self,
        *,
        job: str,
        run_id: str | None = None,
        recipe: BaseModel | Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        sources: Mapping[str, str | None] | None = None,
        parent_run_id: str | None = None,
        owner: str | None = None,
        on_created: Callable[[str], None] | None = None,
    ) -> str | None:
        """Go on with the run `run_id`; see `Tracker.start`. Without one, metrics are kept in the folder alone."""
        if not self._config.enabled:
            return None
        assert run_id or owner, "metrics of nothing in particular would mix with those of others"
        self._runless = run_id is None
        self._waiting.name_after(owner or run_id)
        if not self._runless:
            begin = partial(super().start, job=job, run_id=run_id, recipe=recipe, tags=tags, sources=sources)
            self._calls.put(partial(begin, parent_run_id=parent_run_id, owner=owner, on_created=on_created))
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()
        return run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log values at a step. They leave a few seconds later."""
        self._raise_error()
        if self._thread is None:
            return
        now = int(time.time() * 1000)
        points = [
            MetricPoint(key=key, value=float(value), step=step, timestamp=now)
            for key, value in metrics.items()
        ]
        self._waiting.write(points)

    def log_pictures(self, name: str, picture: "Image | Path | bytes", *, step: int | None = None) -> None:
        """Log a picture. One that MLflow cannot take now is lost."""
        self._raise_error()
        if self._thread is None or self._runless:
            return
        if self._calls.qsize() < _MOST_PICTURES:
            self._calls.put(partial(super().log_pictures, name, picture, step=step))
        else:
            self._left_out += 1

    def finish(self, status: Status = "FINISHED") -> None:
        """Wait for the thread, deliver what is left or leave it in the spool, end the run, and say what is lost."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._calls.put(None)
        thread.join()
        if self._left_out:
            log.warning("MLflow was too slow for %d pictures: they are lost", self._left_out)
        if self._runless:
            self._waiting.gather()
            self._waiting.report("MLflow was away")
        else:
            super().finish(status)
        self._raise_error()

    def _work(self) -> None:
        try:
            send_at = time.monotonic() + _SECONDS_BETWEEN_SENDS
            while True:
                try:
                    call = self._calls.get(timeout=max(0.0, send_at - time.monotonic()))
                except queue.Empty:
                    self._send()
                    send_at = time.monotonic() + _SECONDS_BETWEEN_SENDS
                    continue
                if call is None:
                    return
                call()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that logs
            self._error = error

    def _send(self) -> None:
        if self._runless:
            self._waiting.gather()
        else:
            self._send_all()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error
