"""Which process a number means: process ids are used again, so a start time goes with them."""

import os
import select
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessIdentity:
    """One process of this machine, now or in the past. Linux."""

    pid: int
    started: str  # boot and clock ticks since it

    @classmethod
    def of(cls, pid: int) -> Self:
        """The process that has this id now. `ProcessLookupError` where there is none."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError) as error:
            raise ProcessLookupError(f"no process {pid}") from error
        state, *fields = stat.rpartition(")")[2].split()  # a program's name may hold spaces
        if state == "Z":
            raise ProcessLookupError(f"process {pid} has ended")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return cls(pid=pid, started=f"{boot}/{fields[18]}")

    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        try:
            return ProcessIdentity.of(self.pid) == self
        except ProcessLookupError:
            return False

    def end(self, *, grace_s: float) -> bool:
        """SIGTERM, after the grace SIGKILL; back when it is gone. False where it was gone already.

        The process is held by a descriptor from before its identity is looked at, so that none that has taken its
        number in between is hit.
        """
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.is_alive():
                return False
            for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
                signal.pidfd_send_signal(handle, number)
                if select.select([handle], [], [], patience_s)[0]:
                    return True
        except ProcessLookupError:  # it went between the two
            return True
        finally:
            os.close(handle)
        raise TimeoutError(f"process {self.pid} does not end")

    def to_json(self) -> dict[str, int | str]:
        """As plain values."""
        return asdict(self)
