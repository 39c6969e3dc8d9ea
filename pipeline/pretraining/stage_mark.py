"""The mark of a finished stage in an output folder: by which recipe it was trained, and for how many steps."""

from pathlib import Path
from typing import Literal

from ldznet.config import Config
from ldznet.errors import UserError
from pipeline.cache.sealed import seal, unseal

TrainedStage = Literal["autoencoder", "diffusion"]
TRAINED_STAGES: tuple[TrainedStage, ...] = ("autoencoder", "diffusion")
MARKS = "finished"  # a folder beside `ldm`


class StageMark(Config):
    """Written when all of a stage's weights are there, and removed before they are written over."""

    stage: TrainedStage
    identity: str  # of `PretrainRecipe.stage_identity`
    steps: int

    def save(self, output: Path) -> None:
        """Put it into an output folder, whole or not at all."""
        path = _path(output, self.stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}")
        partial.write_bytes(seal(self))
        partial.replace(path)


def read_mark(output: Path, stage: TrainedStage) -> StageMark | None:
    """The mark of a stage, or None where it is not finished.

    Raises:
        UserError: the mark is damaged.
    """
    path = _path(output, stage)
    if not path.is_file():
        return None
    try:
        return unseal(StageMark, path.read_bytes())
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}): remove it, and the {stage} goes on from its checkpoint"
        ) from None


def remove_mark(output: Path, stage: TrainedStage) -> None:
    """What was finished is about to be written over."""
    _path(output, stage).unlink(missing_ok=True)


def has_marks(output: Path) -> bool:
    """False for a folder that was made before there were marks: it may hold finished stages without one."""
    return (output / MARKS).is_dir()


def begin_marks(output: Path) -> None:
    """From now on a stage without a mark is not finished."""
    (output / MARKS).mkdir(parents=True, exist_ok=True)


def _path(output: Path, stage: TrainedStage) -> Path:
    return output / MARKS / f"{stage}.json"
