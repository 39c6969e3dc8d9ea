"""The checkpoint store of a rank under Ray Train."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


class RayCheckpoints:
    """The checkpoint store of a rank under Ray Train: folders under the run's name in its storage.

    Ray records a checkpoint once every rank's part has arrived, and removes all but the newest few.
    """

    def save(self, folder: Path, *, step: int, metrics: Mapping[str, float]) -> str:
        """Upload this rank's part and report it. Collective."""
        import ray.train

        name = f"step-{step:08d}"
        ray.train.report(
            dict(metrics), checkpoint=ray.train.Checkpoint.from_directory(folder), checkpoint_dir_name=name
        )
        return name

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        """The checkpoint that Ray restarts this run from, fetched to this node, or None."""
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as folder:
            yield Path(folder)
