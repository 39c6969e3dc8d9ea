"""A checkpoint folder: each rank's files under `rank-NNNNN/`, and a receipt a rank that makes them whole.

    rank-00000/engine.safetensors   weights and moments, whole tensors by name, spread over the ranks
    rank-00000/ema.safetensors      averaged weights, likewise
    rank-00000/rng.safetensors      this rank's generators
    rank-00000/progress.json        step, position in the data, best figures (equal on every rank)
    rank-00000.json                 the receipt, written last: sizes and digests of the files above

A checkpoint counts only if the receipts of all its ranks are there, belong to one save, and hold. It may be read by any
number of ranks, at any ZeRO stage, under either engine.
"""

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import xxhash
from pydantic import Field, ValidationError

from ldznet.config import Config
from ldznet.errors import UserError
from pipeline.training import ranks
from pipeline.training.ema import EMA
from pipeline.training.engine import Engine
from pipeline.training.named_tensors import rank_folder
from pipeline.training.rng import load_rng, save_rng

FORMAT = 1
PROGRESS = "progress.json"


class IncompleteCheckpointError(RuntimeError):
    """A checkpoint folder lacks a part, or a part is not what its receipt says."""


class FileRecord(Config):
    """One file of a checkpoint."""

    size: int  # bytes
    xxh3: str


class RankReceipt(Config):
    """What one rank wrote in one save."""

    format: int = FORMAT
    save: str  # one random id a save, so that parts of two saves never pass for one
    world: int
    rank: int
    step: int
    identity: str  # digest of what must not change between this checkpoint and a run that goes on from it
    files: dict[str, FileRecord]


class Progress(Config):
    """Where a training stands. Equal on every rank."""

    step: int = 0
    position: dict[str, int] = Field(default={})  # epoch and batch of the next global batch
    best: float | None = None
    best_step: int | None = None
    worse: int = 0  # validations in a row without a better figure
    stopped: bool = False
    validated: int | None = None  # step of the last validation
    metrics: dict[str, float] = Field(default={})  # of the last validation


class CheckpointStore(Protocol):
    """Where checkpoint folders go. Both methods are collective."""

    def save(self, folder: Path, *, step: int, metrics: Mapping[str, float]) -> str:
        """Keep what this rank wrote in `folder`; when it returns on all ranks, the checkpoint is to be found.

        Returns where it is, for the log.
        """
        ...

    def latest(self) -> AbstractContextManager[Path | None]:
        """The newest checkpoint as a local folder with every rank's files, or None."""
        ...


def write_checkpoint(
    folder: Path, *, engine: Engine, ema: EMA | None, progress: Progress, identity: str
) -> None:
    """Write this rank's part into an empty local folder, its receipt last. Collective."""
    save = ranks.agree(uuid4().hex)
    own = rank_folder(folder, ranks.rank())
    own.mkdir(parents=True)
    engine.save(folder)
    if ema is not None:
        ema.save(folder)
    save_rng(own)
    (own / PROGRESS).write_text(progress.model_dump_json())
    receipt = RankReceipt(
        save=save,
        world=ranks.world_size(),
        rank=ranks.rank(),
        step=progress.step,
        identity=identity,
        files={path.name: _record(path) for path in sorted(own.iterdir())},
    )
    _receipt_path(folder, ranks.rank()).write_text(receipt.model_dump_json())


def read_checkpoint(folder: Path, *, engine: Engine, ema: EMA | None, identity: str) -> Progress:
    """Check a whole checkpoint and read it into engine, EMA and generators. Collective.

    Another number of ranks than wrote it starts its generators anew: what the sampler draws comes from hashes anyway.
    """
    receipt = check_checkpoint(folder)
    if receipt.identity != identity:
        raise UserError(
            f"the checkpoint of step {receipt.step} was made by another configuration: "
            "give the run another name, or set the recipe back"
        )
    engine.load(folder)
    if ema is not None:
        ema.load(folder)
    if receipt.world == ranks.world_size():
        load_rng(rank_folder(folder, ranks.rank()))
    return Progress.model_validate_json((rank_folder(folder, 0) / PROGRESS).read_text())


def check_checkpoint(folder: Path) -> RankReceipt:
    """Rank 0's receipt of a checkpoint that is whole; `IncompleteCheckpointError` says what is missing."""
    first = _read_receipt(folder, 0)
    for number in range(first.world):
        receipt = first if number == 0 else _read_receipt(folder, number)
        if receipt.save != first.save:
            raise IncompleteCheckpointError(f"{folder.name}: ranks 0 and {number} are from different saves")
        for name, record in receipt.files.items():
            path = rank_folder(folder, number) / name
            if not path.is_file() or _record(path) != record:
                raise IncompleteCheckpointError(
                    f"{folder.name}: {path.relative_to(folder)} is missing or damaged"
                )
    return first


def _receipt_path(folder: Path, number: int) -> Path:
    return rank_folder(folder, number).with_suffix(".json")


def _read_receipt(folder: Path, number: int) -> RankReceipt:
    path = _receipt_path(folder, number)
    try:
        receipt = RankReceipt.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise IncompleteCheckpointError(f"{folder.name}: no receipt of rank {number}") from None
    except ValidationError:
        raise IncompleteCheckpointError(f"{folder.name}: the receipt of rank {number} is damaged") from None
    if receipt.format != FORMAT:
        raise UserError(f"{folder.name}: checkpoint format {receipt.format}, this version reads {FORMAT}")
    return receipt


def _record(path: Path) -> FileRecord:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return FileRecord(size=path.stat().st_size, xxh3=digest.hexdigest())


class FolderCheckpoints:
    """Checkpoints in a folder that all ranks see, without Ray: `step-NNNNNNNN`, moved into place when whole."""

    def __init__(self, root: Path, *, keep: int) -> None:
        self._root = root
        self._keep = keep

    def save(self, folder: Path, *, step: int, metrics: Mapping[str, float]) -> str:  # noqa: ARG002 - Ray's store asks
        """Copy this rank's part; rank 0 then moves the whole into place and removes the oldest."""
        final = self._root / f"step-{step:08d}"
        arriving = final.with_suffix(".partial")
        if ranks.rank() == 0:
            shutil.rmtree(arriving, ignore_errors=True)
        ranks.wait_for_all()
        shutil.copytree(folder, arriving, dirs_exist_ok=True)
        ranks.wait_for_all()
        if ranks.rank() == 0:
            shutil.rmtree(final, ignore_errors=True)
            arriving.rename(final)
            for old in self._steps()[: -self._keep]:
                shutil.rmtree(old)
        ranks.wait_for_all()
        return str(final)

    def latest(self) -> AbstractContextManager[Path | None]:
        """The newest checkpoint, where it lies."""
        steps = self._steps()
        return nullcontext(steps[-1] if steps else None)

    def _steps(self) -> list[Path]:
        return sorted(path for path in self._root.glob("step-*") if path.suffix != ".partial")
