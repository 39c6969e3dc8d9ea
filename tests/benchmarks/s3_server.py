"""SeaweedFS for a benchmark: a real S3 server on the same machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.services.seaweedfs import SeaweedFS


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """A running server whose address and credentials are in the environment meanwhile. Gives the bucket's name."""
    with SeaweedFS(folder=folder / "s3", bucket="benchmark") as server:
        values = server.environment()
        before = {name: os.environ.get(name) for name in values}
        os.environ.update(values)
        try:
            yield server.bucket
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
