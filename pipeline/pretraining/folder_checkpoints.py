"""Checkpoints of a stage in a folder that all ranks see: `step-NNNNNNNN`, moved into place when whole."""

import shutil
from pathlib import Path


class FolderCheckpoints:
    """Keeps the newest few checkpoints of a stage under a local folder."""

    def __init__(self, root: Path, *, keep: int) -> None:
        self._root, self._keep = root, keep

    def save(self, folder: Path, *, step: int) -> str:
        """Keep a copy of `folder`, and drop the oldest."""
        self._root.mkdir(parents=True, exist_ok=True)
        final = self._root / f"step-{step:08d}"
        arriving = final.with_suffix(".partial")
        shutil.rmtree(arriving, ignore_errors=True)
        shutil.copytree(folder, arriving)
        shutil.rmtree(final, ignore_errors=True)
        arriving.rename(final)
        for old in self._steps()[: -self._keep]:
            shutil.rmtree(old)
        return str(final)

    def latest(self) -> Path | None:
        """The newest checkpoint, where it lies, or None."""
        steps = self._steps()
        return steps[-1] if steps else None

    def _steps(self) -> list[Path]:
        return sorted(path for path in self._root.glob("step-*") if path.suffix != ".partial")
