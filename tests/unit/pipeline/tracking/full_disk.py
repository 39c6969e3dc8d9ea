"""A disk that takes no more, and points to put on it."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.tracking.spool import MetricPoint


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What would make a file larger fails, as on a full disk. Python ignores the signal that comes with it."""
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))


def points(*steps: int) -> list[MetricPoint]:
    return [MetricPoint(key="loss", value=0.5, step=step, timestamp=1) for step in steps]
