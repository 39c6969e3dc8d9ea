"""A checkpoint is whole or it does not count; generators come back."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from unit.pipeline.training.training_toy import ToyNetwork, forward, loss, toy_batch

from pipeline.training import ranks
from pipeline.training.checkpoint import (
    IncompleteCheckpointError,
    Progress,
    Snapshot,
    check_checkpoint,
    read_checkpoint,
    take_snapshot,
)
from pipeline.training.config import TrainConfig
from pipeline.training.ddp_engine import DDPEngine
from pipeline.training.rng import RNG_FILE, load_rng, rng_state


@pytest.fixture
def engine() -> Iterator[DDPEngine]:
    with ranks.process_group():
        config = TrainConfig(engine="ddp", steps=9, batch_size=2)
        made = DDPEngine(ToyNetwork(), forward=forward, loss=loss, config=config)
        made.train_step(toy_batch(0, 2), lr=1e-2)
        yield made


def snapshot(engine: DDPEngine, *, step: int = 1) -> Snapshot:
    return take_snapshot(engine=engine, ema=None, progress=Progress(step=step), identity="same")


def write(folder: Path, engine: DDPEngine) -> Path:
    snapshot(engine).write(folder)
    return folder


def test_a_whole_checkpoint_is_read(tmp_path: Path, engine: DDPEngine) -> None:
    folder = write(tmp_path / "whole", engine)
    assert check_checkpoint(folder).step == 1
    assert read_checkpoint(folder, engine=engine, ema=None, identity="same") == Progress(step=1)


@pytest.mark.parametrize("name", ["engine.safetensors", "rng.safetensors", "progress.json"])
def test_a_missing_or_damaged_file_is_found(tmp_path: Path, engine: DDPEngine, name: str) -> None:
    folder = write(tmp_path / "whole", engine)
    path = folder / "rank-00000" / name
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)
    with pytest.raises(IncompleteCheckpointError, match=name):
        check_checkpoint(folder)
    path.unlink()
    with pytest.raises(IncompleteCheckpointError, match=name):
        check_checkpoint(folder)


def test_a_rank_without_its_receipt_makes_it_incomplete(tmp_path: Path, engine: DDPEngine) -> None:
    folder = write(tmp_path / "whole", engine)
    receipt = folder / "rank-00000.json"
    of_two = receipt.read_text().replace('"world":1', '"world":2')
    receipt.write_text(of_two)
    with pytest.raises(IncompleteCheckpointError, match="no receipt of rank 1"):
        check_checkpoint(folder)
    receipt.write_text(of_two[:40])
    with pytest.raises(IncompleteCheckpointError, match="receipt of rank 0 is damaged"):
        check_checkpoint(folder)


def test_parts_of_two_saves_never_pass_for_one(tmp_path: Path, engine: DDPEngine) -> None:
    first, second = write(tmp_path / "first", engine), write(tmp_path / "second", engine)
    shutil.copytree(second / "rank-00000", first / "rank-00001")
    (first / "rank-00000.json").write_text(
        (first / "rank-00000.json").read_text().replace('"world":1', '"world":2')
    )
    (first / "rank-00001.json").write_text(
        (second / "rank-00000.json").read_text().replace('"rank":0', '"rank":1')
    )
    with pytest.raises(IncompleteCheckpointError, match="different saves"):
        check_checkpoint(first)


def test_a_snapshot_keeps_its_numbers_while_training_goes_on(tmp_path: Path, engine: DDPEngine) -> None:
    before = {name: tensor.clone() for name, tensor in engine.network.state_dict().items()}
    taken = snapshot(engine)
    for step in range(3):
        engine.train_step(toy_batch(step, 2), lr=1e-2)
    taken.write(tmp_path / "late")
    read_checkpoint(tmp_path / "late", engine=engine, ema=None, identity="same")
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.network.state_dict().items())


def test_every_generator_comes_back(tmp_path: Path) -> None:
    def draws() -> tuple[float, ...]:
        return (
            random.gauss(0, 1),
            float(np.random.standard_normal()),  # noqa: NPY002 - the generator under test
            float(torch.rand(())),
        )

    ranks.seed_everything(3)
    draws()  # both Gaussian generators now hold a second value back
    (tmp_path / RNG_FILE).write_bytes(rng_state())
    expected = draws(), draws()
    ranks.seed_everything(4)
    load_rng(tmp_path)
    assert (draws(), draws()) == expected
