"""What the stations of an experiment took, kept in a file."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class Minutes:
    """Minutes by station, those of attempts that were interrupted included.

    A station that is run again, and finds its work done, does not count. One that was killed leaves no time behind:
    what it had done by then is missing.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._attempts_path = path, path.with_suffix(".attempts.json")
        self.taken = _read(path)
        self._attempts = _read(self._attempts_path)  # of stations that did not come to their end

    def of(self, station: str, act: Callable[[], T]) -> T:
        """Do a station's work."""
        started = time.perf_counter()
        try:
            done = act()
        except BaseException:
            spent = self._attempts.get(station, 0.0) + (time.perf_counter() - started) / 60
            self._attempts[station] = spent
            _write(self._attempts_path, self._attempts)
            raise
        before = self._attempts.get(station, 0.0)
        self.taken.setdefault(station, before + (time.perf_counter() - started) / 60)
        _write(self._path, self.taken)
        return done


def _read(path: Path) -> dict[str, float]:
    minutes: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return minutes


def _write(path: Path, minutes: Mapping[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(minutes, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
