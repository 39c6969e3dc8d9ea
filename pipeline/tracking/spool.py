"""Metrics on their way to the tracker, and the file that keeps them while it is away."""

import json
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
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
    def of(cls, folder: Path, owner: str | None) -> "MetricSpool":
        """The owner's file in a folder that several share; `metrics-spool.jsonl` for what has no name yet."""
        return cls(folder / (f"metrics-spool-{owner}.jsonl" if owner else "metrics-spool.jsonl"))

    @classmethod
    def journal_of(cls, folder: Path, owner: str | None) -> "MetricSpool":
        """The owner's other file, in which points are before they get into the spool."""
        return cls(folder / (f"metrics-journal-{owner}.jsonl" if owner else "metrics-journal.jsonl"))

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
        """Keep points: all of them, or none and an `OSError`, as on a full disk."""
        lines = "".join(json.dumps(asdict(point)) + "\n" for point in points).encode()
        if not lines:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: what the disk did not take must not follow when the file is closed.
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            end = os.fstat(descriptor).st_size
            # A line that a crash cut short must not swallow the next one.
            broken = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"
            _write_all(descriptor, b"\n" + lines if broken else lines, end=end)
        finally:
            os.close(descriptor)

    def clear(self) -> None:
        """Forget all points: they were delivered."""
        self.path.unlink(missing_ok=True)

    def hand_over(self, other: "MetricSpool") -> "MetricSpool":
        """Move all points to another spool, which is given back. Into an empty one they go on a full disk too."""
        if not self.path.is_file():
            return other
        if other.path.exists():
            other.append(self.read())
            self.clear()
        else:
            self.path.replace(other.path)
        return other

    def set_aside(self) -> None:
        """Keep what an earlier run without an id left under another name: it is not the next run's."""
        if self.path.is_file():
            kept = self.path.with_name(f"{self.path.stem}-{int(self.path.stat().st_mtime)}{self.path.suffix}")
            self.path.replace(kept)
            log.warning("metrics that an earlier run could not deliver are kept in %s", kept)


def _write_all(descriptor: int, content: bytes, *, end: int) -> None:
    """Append, or leave the file as long as it was."""
    left = content
    try:
        while left:
            left = left[os.write(descriptor, left) :]
    except OSError:
        with suppress(OSError):  # then `read` leaves out the line that was cut
            os.ftruncate(descriptor, end)
        raise
