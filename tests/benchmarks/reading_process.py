"""One side of a reading benchmark, in a process of its own, so that its CPU time and its memory are its own."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[2]


class ReadingProcess:
    """A program that answers each line with the figures of an epoch; it ends with the `with`, or with us."""

    def __init__(self, command: Sequence[str | Path], *, log: Path) -> None:
        """Starts it and waits until it is ready.

        Args:
            command: the program.
            log: takes what it says on its standard error.
        """
        self._log = log
        self.figures: list[dict[str, Any]] = []  # of each epoch
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            )
        self.ready = self._answer()

    def measure(self, **asked: Any) -> dict[str, Any]:
        """The figures of an epoch."""
        assert self._process.stdin is not None, "the pipe was asked for"
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        self.figures.append(self._answer())
        return self.figures[-1]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None, "the pipe was asked for"
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries may print
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError(f"a side ended with {self._process.wait()}: {self._log.read_text()[-2000:]}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None, (
            "the pipes were asked for"
        )
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
