"""The loss curves of a pretraining: one JSON line a report, a log line now and then, and a tracker if there is one."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 15.0

LogMetrics = Callable[[Mapping[str, float], int], None]  # metrics, step


class CurveFile:
    """An observer of one stage that appends to `FOLDER/STAGE.jsonl`.

    Args:
        folder: of the curves.
        stage: names the file and the tracked metrics.
        tracked: what `Tracker.log_metrics` is; None: the file is all.
    """

    def __init__(self, folder: Path, stage: str, *, tracked: LogMetrics | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._stage = folder / f"{stage}.jsonl", stage
        self._total, self._said = 0, 0.0
        self._tracked = tracked

    def on_start(self, *, step: int, total: int) -> None:
        """Drop what was written after the checkpoint that is gone on from."""
        self._total = total
        if self._path.is_file():
            lines = self._path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            self._path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        logger.info(
            "%s: %s step %d of %d", self._stage, "going on after" if step else "starting at", step, total
        )

    def on_step(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Loss terms, speed, data wait."""
        self._append("train", metrics, step)
        if time.monotonic() - self._said >= SECONDS_BETWEEN_LINES or step == self._total:
            self._said = time.monotonic()
            logger.info("%s: step %d of %d, %s", self._stage, step, self._total, _line(metrics))

    def on_validation(self, metrics: Mapping[str, float], *, step: int, best: bool) -> None:  # noqa: ARG002 - no best
        """Figures of a validation."""
        self._append("validation", metrics, step)
        logger.info("%s: validation after step %d: %s", self._stage, step, _line(metrics))

    def on_checkpoint(self, location: str, *, step: int, seconds: float) -> None:
        """Where a checkpoint went."""
        logger.debug("checkpoint %s after step %d took %.1f s", location, step, seconds)

    def _append(self, kind: str, metrics: Mapping[str, float], step: int) -> None:
        figures = {name: float(f"{value:.5g}") for name, value in metrics.items()}
        record: dict[str, Any] = {"step": step, "kind": kind, "time": round(time.time(), 1), **figures}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._tracked is not None:
            self._tracked({f"{self._stage}/{kind}/{name}": value for name, value in figures.items()}, step)


def read_curve(path: Path, *, kind: str, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one figure of a curve file; `kind` is `train` or `validation`."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    chosen = [record for record in records if record["kind"] == kind and name in record]
    return [record["step"] for record in chosen], [record[name] for record in chosen]


def _line(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
