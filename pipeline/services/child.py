"""A server as a child process that never outlives us."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from pipeline.services import supervisor

_SUPERVISOR = Path(supervisor.__file__)


class ChildServer:
    """A command under a supervisor (see `supervisor`), its output in a new log file; ended with the `with`.

    It ends with us even where we are killed, whichever thread started it. Ctrl-C does not reach it: it goes
    when the `with` does. Secrets belong in `environment`, never in the command, which all users can read.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str],
        folder: Path,
        log: Path,
        grace_s: float = 10.0,
    ) -> None:
        self.log = log
        self._grace_s = grace_s
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", _SUPERVISOR, str(os.getpid()), str(grace_s), *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=dict(environment),
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The supervisor's process id; the server is its one child."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """The server's exit code, None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """End the server; back when it and its supervisor are gone. Nothing happens where they are."""
        assert self._process.stdin is not None, "the pipe was asked for"
        self._process.stdin.close()
        try:
            self._process.wait(self._grace_s + 5)
        except subprocess.TimeoutExpired:
            self._process.kill()  # then the kernel kills the server
            self._process.wait()


def last_lines(log: Path, count: int = 15) -> str:
    """The end of a server's log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:])
