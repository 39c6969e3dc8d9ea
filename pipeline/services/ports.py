"""Free ports on the loopback address."""

import secrets
import socket
from pathlib import Path

LOOPBACK = "127.0.0.1"

_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 10_000
_random = secrets.SystemRandom()


def free_ports(count: int, *, below: int = 65_536, offset: int = 0) -> tuple[int, ...]:
    """Different ports that nobody listens on now.

    They are taken at random from below the range in which the kernel itself hands out ports, so that no
    outgoing connection takes one before its server does. Another process still may: the caller tries again.

    Args:
        count: how many.
        below: an upper limit.
        offset: with each port, the one this much above it is free as well.

    Raises:
        OSError: too few ports are free.
    """
    end = min(below, _kernels_own()) - offset
    candidates = _random.sample(range(_LOWEST, end), end - _LOWEST)
    found: list[int] = []
    for port in candidates:
        if len(found) == count:
            break
        if is_free(port) and (not offset or is_free(port + offset)):
            found.append(port)
    if len(found) < count:
        raise OSError(f"fewer than {count} ports are free on {LOOPBACK} between {_LOWEST} and {end}")
    return tuple(found)


def is_free(port: int) -> bool:
    """Whether a server could listen on the loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _kernels_own() -> int:
    """The first port of the range from which the kernel gives ports to outgoing connections."""
    try:
        first = int(_RANGE_FILE.read_text().split()[0])
    except FileNotFoundError:  # another system than Linux: the registered range for such ports
        return 49_152
    return first if first > _LOWEST + 5_000 else 65_536
