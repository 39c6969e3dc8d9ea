"""A checkpoint folder: each rank's files under `rank-NNNNN/`, and a receipt a rank that makes them whole.

    rank-00000/engine.safetensors   weights and moments, whole tensors by name, spread over the ranks
    rank-00000/ema.safetensors      averaged weights, likewise
    rank-00000/rng.safetensors      this rank's generators
    rank-00000/progress.json        step, position in the data, best figures (equal on every rank)
    rank-00000.json                 the receipt, written last: sizes and digests of the files above

A checkpoint counts only if the receipts of all its ranks are there, belong to one save, and hold. It may be read by any
number of ranks, at any ZeRO stage, under either engine.
"""

from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import xxhash
from pydantic import ConfigDict, Field, ValidationError
from torch import Tensor

from ldznet.config import Config
from ldznet.errors import FinalError, UserError
from pipeline.training import ranks
from pipeline.training.ema import EMA, EMA_FILE
from pipeline.training.engine import ENGINE_FILE, Engine
from pipeline.training.named_tensors import rank_folder
from pipeline.training.rng import RNG_FILE, load_rng, rng_state

FORMAT = 1
PROGRESS = "progress.json"


class IncompleteCheckpointError(FinalError, RuntimeError):
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

    model_config = ConfigDict(ser_json_inf_nan="constants")  # a validation may find no number

    step: int = 0
    position: dict[str, int] = Field(default={})  # epoch and batch of the next global batch
    best: float | None = None
    best_step: int | None = None
    worse: int = 0  # validations in a row without a better figure
    stopped: bool = False
    validated: int | None = None  # step of the last validation
    metrics: dict[str, float] = Field(default={})  # of the last validation


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """This rank's part of a checkpoint, in host memory: training may go on while it is written."""

    save: str
    world: int
    rank: int
    identity: str
    progress: Progress
    tensors: dict[str, dict[str, Tensor]]  # by file
    rng: bytes

    @property
    def name(self) -> str:
        """The checkpoint's, equal on every rank and never used again."""
        return f"step-{self.progress.step:08d}-{self.save[:8]}"

    def write(self, folder: Path) -> None:
        """Write the part into a local folder, its receipt last."""
        from safetensors.torch import save_file

        own = rank_folder(folder, self.rank)
        own.mkdir(parents=True)
        for file, tensors in self.tensors.items():
            save_file(tensors, own / file)
        (own / RNG_FILE).write_bytes(self.rng)
        (own / PROGRESS).write_text(self.progress.model_dump_json())
        receipt = RankReceipt(
            save=self.save,
            world=self.world,
            rank=self.rank,
            step=self.progress.step,
            identity=self.identity,
            files={path.name: _record(path) for path in sorted(own.iterdir())},
        )
        receipt_path(folder, self.rank).write_text(receipt.model_dump_json())


def take_snapshot(*, engine: Engine, ema: EMA | None, progress: Progress, identity: str) -> Snapshot:
    """Copy this rank's part of the training's state to the host. Collective."""
    tensors = {ENGINE_FILE: engine.snapshot()}
    if ema is not None:
        tensors[EMA_FILE] = ema.snapshot()
    return Snapshot(
        save=ranks.agree(uuid4().hex),
        world=ranks.world_size(),
        rank=ranks.rank(),
        identity=identity,
        progress=progress,
        tensors=tensors,
        rng=rng_state(),
    )


def read_checkpoint(folder: Path, *, engine: Engine, ema: EMA | None, identity: str) -> Progress:
    """Read a checkpoint, whole as `CheckpointStore.latest` gives it, into engine, EMA and generators. Collective.

    Another number of ranks than wrote it starts its generators anew: what the sampler draws comes from hashes anyway.
    """
    receipt = _read_receipt(folder, 0)
    if receipt.identity != identity:
        raise UserError(
            f"the checkpoint of step {receipt.step} was made by another configuration, of other data or another frozen "
            "LDM: give the run another name, or set back what has changed"
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


def receipt_path(folder: Path, number: int) -> Path:
    """Where the receipt of rank `number` lies in a checkpoint folder."""
    return rank_folder(folder, number).with_suffix(".json")


def _read_receipt(folder: Path, number: int) -> RankReceipt:
    path = receipt_path(folder, number)
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
