"""What MLflow's server and a Ray head have in common: started on a free loopback port, waited for, ended."""

import http.client
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from pipeline.services.child import ChildServer, last_lines

log = logging.getLogger(__name__)

TRIES = 3  # with other ports each
_POLL_S = 0.2


class LoopbackServer(ABC):
    """A server on the loopback address, running inside a `with`; its log stays in `folder` afterwards.

    Raises:
        RuntimeError: it does not start; the message ends with the last lines of its log.
    """

    name: str
    grace_s: float = 10.0

    def __init__(self, *, folder: Path, start_within_s: float = 300.0) -> None:
        self.folder = folder.absolute()
        self._start_within_s = start_within_s
        self._server: ChildServer | None = None

    @property
    def log(self) -> Path:
        """What the server writes to its terminal."""
        return self.folder / f"{self.name}.log"

    @property
    def pid(self) -> int:
        """The process id of the server's supervisor, while it runs."""
        if self._server is None:
            raise RuntimeError(f"{self.name} is not running: use it inside its `with`")
        return self._server.pid

    @property
    @abstractmethod
    def address(self) -> str:
        """The address that people and clients use, while it runs."""

    @abstractmethod
    def choose_ports(self) -> None:
        """Take ports that are free now."""

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """What to run, on the ports chosen. No secrets: all users can read it."""

    @abstractmethod
    def servers_environment(self) -> Mapping[str, str]:
        """All variables of the server itself."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it serves clients with the right credentials now."""

    @abstractmethod
    def secrets(self) -> Sequence[str]:
        """What no message may hold."""

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for number in range(TRIES):
            self.choose_ports()
            if self._start():
                log.info("%s runs at %s, log %s", self.name, self.address, self.log)
                return self
            log.debug("%s ended while starting, try %d of %d", self.name, number + 1, TRIES)
        raise RuntimeError(f"{self.name} did not start in {TRIES} tries; {self._end_of_log()}")

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    def _start(self) -> bool:
        """True once it answers, False where it ended, as where a port is taken."""
        self._server = ChildServer(
            self.command(),
            environment=self.servers_environment(),
            folder=self.folder,
            log=self.log,
            grace_s=self.grace_s,
        )
        until = time.monotonic() + self._start_within_s
        try:
            while self._server.exit_code() is None:
                if self.answers():
                    return True
                self._be_patient(until)
        except BaseException:
            self.__exit__()
            raise
        self.__exit__()
        return False

    def _be_patient(self, until: float) -> None:
        if time.monotonic() > until:
            late = f"{self.name} did not answer within {self._start_within_s:g} s"
            raise RuntimeError(f"{late}; {self._end_of_log()}")
        time.sleep(_POLL_S)

    def _end_of_log(self) -> str:
        lines = last_lines(self.log)
        for secret in self.secrets():
            lines = lines.replace(secret, "…")
        return f"the end of {self.log}:\n{lines}"


def http_status(address: str, path: str, headers: Mapping[str, str] | None = None) -> int:
    """The status of a GET; 0 where nobody answers."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=10)
    try:
        connection.request("GET", path, headers=dict(headers or {}))
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
