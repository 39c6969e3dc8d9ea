"""Runs one command and ends it as soon as the process that asked for it is gone.

A script of its own that needs nothing but the standard library: `supervisor.py PARENT GRACE COMMAND…`, its
input a pipe whose other end the parent holds. It stops the command when the pipe closes, when its parent is
another one than PARENT, or on SIGTERM: SIGTERM to the command's process group first, SIGKILL after GRACE
seconds to whatever of it is left. Should the supervisor itself be killed, the kernel kills the command.
The kernel's own signal alone would not do: it comes when the thread that started the command ends, not the
process.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

POLL_S = 0.2
_PR_SET_PDEATHSIG = 1
_NONE = 0  # asks only whether there is a process


def main(arguments: list[str]) -> int:
    """Run the command until it ends or must end; its exit code."""
    parent, grace_s, command = int(arguments[0]), float(arguments[1]), arguments[2:]
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _: stopping.append(received))
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        process_group=0,
        preexec_fn=_dies_with(os.getpid()),  # noqa: PLW1509 - there is one thread
    )
    while child.poll() is None:
        if stopping or os.getppid() != parent or _closed(sys.stdin.fileno()):
            _stop(child, grace_s)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _closed(pipe: int) -> bool:
    """Whether the other end of the pipe is gone; waits a moment for it."""
    ready, _, _ = select.select([pipe], [], [], POLL_S)
    return bool(ready) and not os.read(pipe, 1)


def _stop(child: subprocess.Popen[bytes], grace_s: float) -> None:
    """End the whole group: a command may be gone before the servers that it started have left their ports."""
    until = time.monotonic() + grace_s
    asked = int(signal.SIGTERM)
    while _signal(child.pid, asked):
        child.poll()  # reaped, it no longer counts as one of the group
        if time.monotonic() > until:
            _signal(child.pid, signal.SIGKILL)
            break
        time.sleep(POLL_S / 10)
        asked = _NONE
    child.wait()


def _signal(group: int, number: int) -> bool:
    """Whether anyone was there to get it."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _dies_with(supervisor: int) -> Callable[[], None] | None:
    """To be called in the child: the kernel is to kill it when the supervisor, which has one thread, ends."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None, use_errno=True)

    def ask() -> None:
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:  # it ended before the kernel was asked
            os.kill(os.getpid(), signal.SIGKILL)

    return ask


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
