"""Trainings of a toy on plain processes over gloo, which die where they are told to; no Ray."""

import json
import multiprocessing
import os
import random
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

STEPS, EVERY, BATCH, KEEP = 12, 3, 8, 2
ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {"engine": "ddp"},
    "zero-1": {"zero_stage": 1},
    "zero-2": {"zero_stage": 2},
    "zero-3": {"zero_stage": 3},
}
MOMENTS = ("waiting for data", "forward", "averaging", "snapshot", "upload", "uploaded", "sealed")
PATIENCE_S = 300.0  # of a busy machine; nothing waits so long that goes well


@dataclass(frozen=True, kw_only=True)
class Blow:
    """A signal that a rank sends itself, once."""

    rank: int
    step: int  # counted from 1; of a checkpoint's moments: that of the first checkpoint from there on
    moment: str
    signal: int = signal.SIGKILL

    @property
    def lands(self) -> int:
        """The step at which it strikes."""
        of_checkpoint = self.moment in {"snapshot", "upload", "uploaded", "sealed"}
        return -(-self.step // EVERY) * EVERY if of_checkpoint else self.step


def draw_blow(draw: random.Random, *, after: int) -> Blow:
    """A kill between the checkpoint of step `after` and the next but one."""
    moment = draw.choice(MOMENTS)
    rank = 0 if moment == "sealed" else draw.randrange(2)
    return Blow(rank=rank, step=draw.randint(after + 1, after + EVERY), moment=moment)


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training in a folder: its checkpoints, what each attempt saw, the weights at its end."""

    folder: Path
    options: Mapping[str, Any]
    dropout: float = 0.2
    source: str = "calm"  # or what is wrong with the data

    def start(self, *, ranks: int = 2, blow: Blow | None = None) -> list[int]:
        """One attempt on so many ranks, from the last checkpoint on; the processes' exit codes."""
        attempt = len(list(self.folder.glob("attempt-*")))
        place = self.folder / f"attempt-{attempt}"
        place.mkdir(parents=True)
        context = multiprocessing.get_context("forkserver")
        processes = [
            context.Process(target=_run, args=(self, place, rank, ranks, blow)) for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        return _ended(processes)

    @property
    def attempts(self) -> list[dict[int, dict[str, Any]]]:
        """Of each attempt, by step: the loss, and the samples of the global batch in order."""
        return [
            _seen(place)
            for place in sorted(self.folder.glob("attempt-*"), key=lambda path: int(path.name[8:]))
        ]

    @property
    def newest(self) -> int:
        """Step of the newest checkpoint, 0 without any."""
        name = _store(self.folder).newest()
        return 0 if name is None else int(name.split("-")[1])

    @property
    def weights(self) -> dict[str, Any]:
        """Own and averaged weights at the end."""
        from safetensors.torch import load_file

        return load_file(self.folder / "end.safetensors")

    @property
    def checkpoints(self) -> list[int]:
        """Steps of the checkpoints in the store, all of them sealed and whole."""
        from pipeline.training.checkpoint import check_checkpoint

        names = {path.name.split(".")[0] for path in (self.folder / "checkpoints").iterdir()}
        kept = _store(self.folder)
        unsealed = [name for name in names if not (self.folder / "checkpoints" / f"{name}.json").is_file()]
        assert not unsealed
        for name in names:
            kept._fetch(name, self.folder / "fetched" / name)
            check_checkpoint(self.folder / "fetched" / name)
        return sorted(int(name.split("-")[1]) for name in names)


@contextmanager
def rank_processes(scratch: Path) -> Iterator[None]:
    """Ranks are forked from a process that has imported everything; their scratch lies in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        tests = Path(__file__).parents[1]
        patch.setenv("PYTHONPATH", f"{tests}{os.pathsep}{tests.parent}")
        patch.setenv("TMPDIR", str(scratch))
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setenv("PYTHONWARNINGS", "ignore")
        patch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
        patch.setenv("CXX", "/nonexistent")  # nothing may be compiled
        patch.setenv("TORCH_EXTENSIONS_DIR", str(scratch / "extensions"))
        multiprocessing.get_context("forkserver").set_forkserver_preload(["fault.imported_engines", __name__])
        yield
        forkserver._forkserver._stop()  # type: ignore[attr-defined]  # it would live as long as the tests


def _ended(processes: Sequence[ForkServerProcess]) -> list[int]:
    for process in processes:
        process.join(PATIENCE_S)
    alive = [process for process in processes if process.is_alive()]
    for process in alive:
        process.kill()
        process.join()
    assert not alive, "a rank outlived the others"
    return [process.exitcode or 0 for process in processes]


def _seen(place: Path) -> dict[int, dict[str, Any]]:
    seen: dict[int, dict[str, Any]] = {}
    for path in sorted(place.glob("rank-*.jsonl")):
        for line in path.read_text().splitlines():
            told = json.loads(line)
            step = seen.setdefault(told.pop("step"), {"keys": []})
            step["keys"] += told.pop("keys", [])
            step.update(told)
    return seen


def _store(folder: Path) -> Any:
    from pipeline.object_store.opening import open_store
    from pipeline.training.checkpoint_store import CheckpointStore

    return CheckpointStore(open_store(folder / "checkpoints"), keep=KEEP)


def _run(training: Training, place: Path, rank: int, world: int, blow: Blow | None) -> None:
    """What each process does."""
    import tempfile

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    tempfile.tempdir = None  # the server's own was made before
    os.environ["LOCAL_RANK"] = str(rank)
    with (place / f"errors-{rank}").open("w") as errors:
        os.dup2(errors.fileno(), 2)
    dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=world)
    _train(training, place, rank, world, blow)
    dist.barrier()
    dist.destroy_process_group()


def _train(training: Training, place: Path, rank: int, world: int, blow: Blow | None) -> None:
    from safetensors.torch import save_file
    from unit.pipeline.training.training_toy import ToyNetwork, forward, loss

    from pipeline.training import ranks
    from pipeline.training.config import TrainConfig
    from pipeline.training.ema import EMA, model_state
    from pipeline.training.engine import build_engine
    from pipeline.training.loop import train

    options = {"steps": STEPS, "batch_size": BATCH, "lr": 1e-2, "checkpoint_every": EVERY} | training.options
    config = TrainConfig(workers=world, **options)
    ranks.seed_everything(100 + rank)
    log = (place / f"rank-{rank}.jsonl").open("a", buffering=1)
    engine = build_engine(ToyNetwork(dropout=training.dropout), forward=forward, loss=loss, config=config)
    ema = EMA(engine)
    strike = _Strike(blow if blow is not None and blow.rank == rank else None)
    kept = _striking(_store(training.folder), engine, ema, strike)
    train(
        engine=engine,
        ema=ema,
        source=_source(training.source, rank=rank, world=world, log=log, strike=strike, engine=engine),
        config=config,
        observer=_Log(log),
        checkpoints=kept,
    )
    state = model_state(engine, None)
    average = ema.state_dict()
    if rank == 0:
        save_file(
            state | {f"ema.{name}": value for name, value in average.items()},
            training.folder / "end.safetensors",
        )
    engine.close()


class _Strike:
    """Strikes at its moment."""

    def __init__(self, blow: Blow | None) -> None:
        self.blow = blow

    def __call__(self, moment: str, *, step: int) -> None:
        if self.blow is not None and (moment, step) == (self.blow.moment, self.blow.lands):
            os.kill(os.getpid(), self.blow.signal)


class _Log:
    """An observer that writes losses down."""

    def __init__(self, log: Any) -> None:
        self.log = log

    def on_start(self, *, step: int, total: int) -> None: ...

    def on_step(self, metrics: Mapping[str, float], *, step: int) -> None:
        self.log.write(json.dumps({"step": step, "loss": metrics["loss"]}) + "\n")

    def on_validation(self, metrics: Mapping[str, float], *, step: int, best: bool) -> None: ...

    def on_checkpoint(self, location: str, *, step: int, seconds: float) -> None: ...


def _striking(kept: Any, engine: Any, ema: Any, strike: _Strike) -> Any:
    """The store with blows in the moments of a checkpoint, and engine and average with theirs."""
    snapshot, update, upload, seal = engine.snapshot, ema.update, kept.upload, kept.seal
    store = type(kept._store)
    put = store.put

    def striking_snapshot() -> Any:
        strike("snapshot", step=engine.step)
        return snapshot()

    def striking_update() -> None:
        strike("averaging", step=engine.step)
        update()

    def striking_put(self: Any, key: str, body: Any) -> None:
        put(self, key, body)
        if key.endswith("engine.safetensors"):
            strike("upload", step=int(key.split("-")[1]))

    def striking_upload(folder: Path, name: str, *, rank: int) -> None:
        upload(folder, name, rank=rank)
        strike("uploaded", step=int(name.split("-")[1]))

    def striking_seal(name: str, *, world: int) -> None:
        seal(name, world=world)
        strike("sealed", step=int(name.split("-")[1]))

    for target, attribute, replacement in (
        (engine, "snapshot", striking_snapshot),
        (ema, "update", striking_update),
        (store, "put", striking_put),
        (kept, "upload", striking_upload),
        (kept, "seal", striking_seal),
    ):
        setattr(target, attribute, replacement)
    run = engine._accumulation.run

    def striking_run(batch: Any, **arguments: Any) -> float:
        strike("forward", step=engine.step + 1)
        return run(batch, **arguments)

    engine._accumulation = _Accumulation(striking_run)
    return kept


@dataclass(frozen=True)
class _Accumulation:
    run: Any


def _source(kind: str, *, rank: int, world: int, log: Any, strike: _Strike, engine: Any) -> Any:
    from dataclasses import replace

    from unit.pipeline.training.training_toy import ToySource

    class Source(ToySource):
        def epoch(self, position: Any) -> Any:
            for number, batch in enumerate(super().epoch(position), position.batch):
                step = position.epoch * len(self) + number + 1
                strike("waiting for data", step=step)
                log.write(json.dumps({"step": step, "keys": batch.keys}) + "\n")
                if (kind, step, rank) == ("nan", 8, 1):
                    batch.latents[2, 0, 0, 0] = float("nan")
                if (kind, step, rank) == ("wild", 8, 1):
                    batch.masks[2] = 1e4
                yield replace(batch)

    return Source(batch_size=BATCH, rank=rank, ranks=world)
