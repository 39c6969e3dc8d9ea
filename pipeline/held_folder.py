"""Temporary folders held by a lock on them (`flock`), which the system drops when the process ends, however it ends.

So a process that starts can tell what dead ones left behind and remove it, and never takes a living one's: across
containers, and whatever process ids are used again.
"""

import fcntl
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def held_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """A folder that goes at the end; in `parent`, else where the system keeps temporary files (`TMPDIR`)."""
    parent = parent or Path(tempfile.gettempdir())
    held = None
    while held is None:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        held = _hold(path)  # None where a process that starts just took it for a dead one's
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


def sweep_folders(prefix: str, parent: Path | None = None) -> int:
    """Remove the folders of dead processes of this user; their number."""
    parent, removed = parent or Path(tempfile.gettempdir()), 0
    for path in sorted(parent.glob(f"{prefix}*")):
        held = _hold(path)
        if held is None:
            continue
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)
        removed += 1
    if removed:
        logger.info("removed %d scratch folders that dead workers left in %s", removed, parent)
    return removed


def _hold(path: Path) -> int | None:
    """A descriptor that holds the folder's lock; None where another process does, or it is gone, or not ours."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None  # gone, another user's, or no folder
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        opened, named = os.fstat(descriptor), path.lstat()
    except OSError:  # BlockingIOError: it is held; FileNotFoundError: it went between the two lines
        os.close(descriptor)
        return None
    ours = opened.st_uid == os.getuid() and stat.S_ISDIR(named.st_mode)
    if not ours or (opened.st_dev, opened.st_ino) != (named.st_dev, named.st_ino):
        os.close(descriptor)
        return None
    return descriptor
