"""What is told of a training while it runs: log lines for people, metrics for MLflow."""

import logging
import time
from collections.abc import Mapping

from pipeline.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0


class TrainingObserver:
    """Logs every report to MLflow and a line now and then. Lives on rank 0."""

    def __init__(self, *, tracker: Tracker, title: str) -> None:
        self._tracker = tracker
        self._title = title
        self._total = 0
        self._said = 0.0

    def on_start(self, *, step: int, total: int) -> None:
        """Say where the training starts."""
        self._total = total
        logger.info(
            "%s: %s step %d of %d", self._title, "going on after" if step else "starting at", step, total
        )

    def on_step(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Loss, learning rate, speed, and the share of time spent waiting for data."""
        self._tracker.log_metrics({f"train/{name}": value for name, value in metrics.items()}, step=step)
        now = time.monotonic()
        if now - self._said >= SECONDS_BETWEEN_LINES or step == self._total:
            self._said = now
            logger.info(
                "%s: step %d of %d, loss %.4f, %.1f samples/s, %.1f %% waiting for data",
                self._title,
                step,
                self._total,
                metrics["loss"],
                metrics["samples_per_second"],
                100 * metrics["data_wait_share"],
            )

    def on_validation(self, metrics: Mapping[str, float], *, step: int, best: bool) -> None:
        """Figures of a validation."""
        self._tracker.log_metrics({f"val/{name}": value for name, value in metrics.items()}, step=step)
        figures = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        logger.info(
            "%s: validation after step %d: %s%s", self._title, step, figures, " (best so far)" if best else ""
        )

    def on_checkpoint(self, location: str, *, step: int, seconds: float) -> None:
        """Where a checkpoint went and what it cost."""
        self._tracker.log_metrics({"checkpoint/seconds": seconds}, step=step)
        logger.debug("checkpoint %s after step %d took %.1f s", location, step, seconds)
