"""Metrics on their way to the tracker, and the file that keeps them while it is away."""

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricPoint:
    """One value of one metric."""

    key: str
    value: float
    step: int
    timestamp: int  # ms since 1970


class MetricSpool:
    """A JSONL file of points not yet delivered. It does not exist while there are none."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of_run(cls, folder: Path, run_id: str | None = None) -> "MetricSpool":
        """The run's own file in a folder that several runs may share; `metrics-spool.jsonl` while it has no id."""
        return cls(folder / (f"metrics-spool-{run_id}.jsonl" if run_id else "metrics-spool.jsonl"))

    def __len__(self) -> int:
        return len(self.read())

    def read(self) -> list[MetricPoint]:
        """All points, in the order in which they were logged. Lines that a crash cut short are left out."""
        if not self.path.is_file():
            return []
        points = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                points.append(MetricPoint(**json.loads(line)))
            except (ValueError, TypeError):
                continue
        return points

    def append(self, points: Iterable[MetricPoint]) -> None:
        """Keep points."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(point)) + "\n" for point in points)

    def clear(self) -> None:
        """Forget all points: they were delivered."""
        self.path.unlink(missing_ok=True)

    def hand_over(self, other: "MetricSpool") -> "MetricSpool":
        """Move all points to another spool, which is given back."""
        if self.path.is_file():
            other.append(self.read())
            self.clear()
        return other

    def set_aside(self) -> None:
        """Keep what an earlier run without an id left under another name: it is not the next run's."""
        if self.path.is_file():
            kept = self.path.with_name(f"{self.path.stem}-{int(self.path.stat().st_mtime)}{self.path.suffix}")
            self.path.replace(kept)
            log.warning("metrics that an earlier run could not deliver are kept in %s", kept)
