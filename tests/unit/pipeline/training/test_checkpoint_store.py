"""Checkpoints on a store: complete or invisible, the newest few, and nothing left of what was never whole."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.pipeline.training.training_toy import ToyNetwork, forward, loss, toy_batch

from ldznet.errors import UserError
from pipeline.held_folder import held_folder
from pipeline.object_store.store import ObjectStore
from pipeline.training import ranks
from pipeline.training.checkpoint import (
    IncompleteCheckpointError,
    Progress,
    Snapshot,
    check_checkpoint,
    take_snapshot,
)
from pipeline.training.checkpoint_store import SCRATCH, CheckpointStore
from pipeline.training.checkpoint_upload import CheckpointUpload, CheckpointUploadError
from pipeline.training.config import TrainConfig
from pipeline.training.ddp_engine import DDPEngine


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def engine() -> Iterator[DDPEngine]:
    with ranks.process_group():
        config = TrainConfig(engine="ddp", steps=9, batch_size=2)
        made = DDPEngine(ToyNetwork(), forward=forward, loss=loss, config=config)
        made.train_step(toy_batch(0, 2), lr=1e-2)
        yield made


def snapshot(engine: DDPEngine, step: int) -> Snapshot:
    return take_snapshot(engine=engine, ema=None, progress=Progress(step=step), identity="same")


def bring(kept: CheckpointStore, taken: Snapshot, folder: Path) -> None:
    taken.write(folder / taken.name)
    kept.upload(folder / taken.name, taken.name, rank=0)
    kept.seal(taken.name, world=1)


def test_only_the_newest_stay_and_come_back_whole(
    store: ObjectStore, engine: DDPEngine, tmp_path: Path, scratch: Path
) -> None:
    kept = CheckpointStore(store, keep=2)
    with kept.latest() as none:
        assert none is None
    for step in (9, 10, 1_000_000_001):
        bring(kept, snapshot(engine, step), tmp_path)
    with kept.latest() as newest:
        assert newest is not None
        assert check_checkpoint(newest).step == 1_000_000_001
    names = {info.key.split(".")[0] for info in store.list()}
    assert sorted(name.split("-")[1] for name in names) == ["00000010", "1000000001"]
    assert list(scratch.glob(f"{SCRATCH}*")) == []


def test_what_was_never_sealed_is_invisible_and_goes(
    store: ObjectStore, engine: DDPEngine, tmp_path: Path
) -> None:
    kept = CheckpointStore(store, keep=2)
    bring(kept, snapshot(engine, 1), tmp_path)
    left = snapshot(engine, 2)
    left.write(tmp_path / "left")
    kept.upload(tmp_path / "left", left.name, rank=0)
    with pytest.raises(OSError, match="1 of 2 parts are there"):
        kept.seal(left.name, world=2)
    with kept.latest() as newest:
        assert newest is not None
        assert check_checkpoint(newest).step == 1
    assert not list(store.list(left.name))
    assert kept.sweep() == 0


def test_a_checkpoint_is_invisible_before_it_loses_a_part(
    store: ObjectStore, engine: DDPEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = CheckpointStore(store, keep=1)
    bring(kept, snapshot(engine, 1), tmp_path)
    real, removed = type(store).delete, []

    def killed(self: ObjectStore, key: str) -> None:
        removed.append(key)
        if len(removed) == 3:
            raise KeyboardInterrupt
        real(self, key)

    monkeypatch.setattr(type(store), "delete", killed)
    with pytest.raises(KeyboardInterrupt):
        bring(kept, snapshot(engine, 2), tmp_path)
    assert re.fullmatch(r"step-00000001-\w{8}\.json", removed[0])
    monkeypatch.setattr(type(store), "delete", real)
    assert kept.sweep() == 3  # of five objects in all, seal included
    with kept.latest() as newest:
        assert newest is not None
        assert check_checkpoint(newest).step == 2


def damage(store: ObjectStore, name: str) -> None:
    (key,) = [info.key for info in store.list(name) if info.key.endswith("engine.safetensors")]
    body = bytearray(store.get(key))
    body[-3] ^= 1
    store.put(key, bytes(body))


def test_a_damaged_one_gives_way_to_the_one_before(
    store: ObjectStore, engine: DDPEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = CheckpointStore(store, keep=2)
    taken = {step: snapshot(engine, step) for step in (1, 2)}
    for one in taken.values():
        bring(kept, one, tmp_path)
    damage(store, taken[2].name)
    with kept.latest() as newest:
        assert newest is not None
        assert check_checkpoint(newest).step == 1
    assert f"{taken[2].name}: rank-00000/engine.safetensors is missing or damaged; going back" in caplog.text
    bring(kept, snapshot(engine, 2), tmp_path)  # the damaged one is in nobody's way
    assert {name.split("-")[1] for name in kept._sealed()} == {"00000001", "00000002"}


def test_a_seal_without_any_part_gives_way_too(store: ObjectStore, engine: DDPEngine, tmp_path: Path) -> None:
    kept = CheckpointStore(store, keep=2)
    names = []
    for step in (1, 2):
        taken = snapshot(engine, step)
        bring(kept, taken, tmp_path)
        names.append(taken.name)
    for info in list(store.list(f"{names[1]}.")):
        if info.key != f"{names[1]}.json":
            store.delete(info.key)
    with kept.latest() as newest:
        assert newest is not None
        assert check_checkpoint(newest).step == 1


def test_the_last_one_is_never_removed(store: ObjectStore, engine: DDPEngine, tmp_path: Path) -> None:
    kept = CheckpointStore(store, keep=2)
    taken = snapshot(engine, 1)
    bring(kept, taken, tmp_path)
    damage(store, taken.name)
    objects = sorted(info.key for info in store.list())
    with pytest.raises(
        IncompleteCheckpointError, match=r"there is no other: remove .* to train from the start"
    ):
        kept.latest().__enter__()
    assert sorted(info.key for info in store.list()) == objects


def test_what_was_damaged_on_its_way_only_is_fetched_again(
    store: ObjectStore, engine: DDPEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = CheckpointStore(store, keep=2)
    bring(kept, snapshot(engine, 1), tmp_path)
    real, cut = type(store).get_range, []

    def once_wrong(self: ObjectStore, key: str, *, start: int, length: int) -> bytes:
        body = real(self, key, start=start, length=length)
        if key.endswith("engine.safetensors") and not cut:
            cut.append(key)
            return bytes(len(body))
        return body

    monkeypatch.setattr(type(store), "get_range", once_wrong)
    with kept.latest() as newest:
        assert newest is not None
        assert check_checkpoint(newest).step == 1
    assert cut


class Failing(CheckpointStore):
    def upload(self, folder: Path, name: str, *, rank: int) -> None:
        raise OSError("the disk is full")


def test_a_fault_of_the_upload_comes_up_at_the_next_step(
    store: ObjectStore, engine: DDPEngine, scratch: Path
) -> None:
    upload = CheckpointUpload(Failing(store, keep=1))
    upload.start(snapshot(engine, 3))
    while upload.busy:
        pass
    with pytest.raises(
        CheckpointUploadError, match="step 3 did not reach its store: this rank: the disk is full"
    ):
        upload.advance(busy=0, failed=int(upload.failed))
    assert list(scratch.glob(f"{SCRATCH}*")) == []


def test_scratch_of_killed_ranks_goes_with_the_next_start(store: ObjectStore, scratch: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from pipeline.held_folder import held_folder\n"
        "with held_folder(sys.argv[1], Path(sys.argv[2])) as folder:\n"
        "    (folder / 'engine').write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).resolve().parents[4]
    killed = subprocess.run([sys.executable, "-c", code, SCRATCH, str(scratch)], cwd=root, check=False)
    assert killed.returncode == -9
    (left,) = scratch.glob(f"{SCRATCH}*")
    with held_folder(SCRATCH) as living:
        CheckpointUpload(CheckpointStore(store, keep=1))
        assert living.is_dir()
    assert not left.exists()


def test_who_may_not_list_unfinished_uploads_sweeps_all_the_same(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: float) -> int:
        raise UserError("no permission for s3://bucket")

    monkeypatch.setattr(type(store), "discard_unfinished", refused)
    store.put("step-00000003.rank-0.model.safetensors", b"left")
    assert CheckpointStore(store, keep=2).sweep() == 1
