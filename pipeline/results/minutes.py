"""What the stations of an experiment took, kept in a file."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class Minutes:
    """Minutes by station. One that is run again, and finds its work done, does not count."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.taken: dict[str, float] = {}
        if path.is_file():
            self.taken = json.loads(path.read_text(encoding="utf-8"))

    def of(self, station: str, act: Callable[[], T]) -> T:
        """Do a station's work."""
        started = time.perf_counter()
        done = act()
        self.taken.setdefault(station, (time.perf_counter() - started) / 60)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self.taken, indent=1) + "\n", encoding="utf-8")
        return done
