"""Freed memory stays with a process whose networks run on its CPU.

glibc gives large blocks back to the system as they are freed, more so to threads other than the first. A pass of a
network asks for the same blocks again: each page comes back zeroed, one fault each, 23,000 a second in a worker.
"""

import ctypes
import sys
from typing import Final

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
_OWN_MAPPING_FROM: Final = (
    32 << 20
)  # bytes; glibc takes no more: larger blocks are mapped and unmapped each time
_GROW_BY: Final = 64 << 20  # bytes
_NEVER: Final = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have this process keep what it frees, for its next allocation: it stays as large as it once was.

    Returns:
        Whether that could be asked for: not where the C library is another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    asked = (
        (_M_MMAP_THRESHOLD, _OWN_MAPPING_FROM),
        (_M_TRIM_THRESHOLD, _NEVER),
        (_M_TOP_PAD, _GROW_BY),
    )
    taken = [mallopt(parameter, value) for parameter, value in asked]
    return all(taken)
