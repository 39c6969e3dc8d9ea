"""Where benchmarks put what they write: in memory, so that no disk is measured by accident."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MEMORY = Path("/dev/shm")  # noqa: S108 - Linux's file system in memory; a fresh folder of our own in it


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A fresh folder, in memory where the system has such a place. Gone at the end."""
    place = _MEMORY if _MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="ldznet-bench-", dir=place) as folder:
        yield Path(folder)
