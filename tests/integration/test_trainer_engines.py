"""ZeRO 0-3, offload, accumulation and DDP on two gloo ranks: equal losses and weights, checkpoints for each other."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

TOY = Path(__file__).parents[1]
RANKS, STEPS, BATCH, SAVED, CLIP = 2, 50, 8, 20, 0.3

ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {"engine": "ddp"},
    "zero-0": {"zero_stage": 0},
    "zero-1": {"zero_stage": 1},
    "zero-2": {"zero_stage": 2},
    "zero-3": {"zero_stage": 3},
    "zero-2-offload": {"zero_stage": 2, "offload": True},
    "zero-3-offload": {"zero_stage": 3, "offload": True},
    "zero-0-accumulated": {"zero_stage": 0, "micro_batch": 2},
    "zero-2-accumulated": {"zero_stage": 2, "micro_batch": 1},
    "zero-3-accumulated": {"zero_stage": 3, "micro_batch": 2},
}
MIXED: dict[str, dict[str, Any]] = {
    f"{name}-bf16": ENGINES[name] | {"precision": "bf16"} for name in ("ddp", "zero-2", "zero-3")
}
READERS = ("ddp", "zero-0", "zero-1", "zero-2", "zero-3", "zero-3-offload")


class Run:
    """One engine on one rank with its EMA, fed from the toy data set."""

    def __init__(self, name: str, *, world: int, rank: int) -> None:
        sys.path.insert(0, str(TOY))
        from unit.pipeline.training.training_toy import ToyNetwork, forward, loss, toy_batch

        from pipeline.training.config import TrainConfig
        from pipeline.training.ema import EMA
        from pipeline.training.engine import build_engine

        config = TrainConfig(
            steps=STEPS, batch_size=BATCH, workers=world, lr=1e-2, clip_norm=CLIP, **(ENGINES | MIXED)[name]
        )
        self.taken: list[int] = []  # samples of each forward pass

        def counted(network: Any, batch: Any) -> torch.Tensor:
            self.taken.append(len(batch.keys))
            return forward(network, batch)

        # Each rank starts from other weights: rank 0's must win.
        self.engine = build_engine(ToyNetwork(seed=rank), forward=counted, loss=loss, config=config)
        self.ema = EMA(self.engine)
        self.share, self.rank, self.world, self.toy_batch = BATCH // world, rank, world, toy_batch

    def train(self, first: int, last: int) -> list[tuple[float, float]]:
        """Steps `first` to `last`; losses and gradient norms. The fifth batch ends in padding."""
        figures = []
        for step in range(first, last):
            padding = 3 if step == 4 and self.rank == self.world - 1 else 0
            batch = self.toy_batch(step * BATCH + self.rank * self.share, self.share, padding=padding)
            report = self.engine.train_step(batch, lr=1e-2)
            self.ema.update()
            figures.append((report.loss, report.grad_norm))
        return figures

    def effects(self, target: Path) -> None:
        """What a first step at learning rate 0 does: rank 0 leaves what tells that options are in force."""
        from pipeline.training import ranks
        from pipeline.training.ema import model_state

        before = model_state(self.engine, None)
        report = self.engine.train_step(self.toy_batch(self.rank * self.share, self.share), lr=0.0)
        after, own = model_state(self.engine, None), self.engine.snapshot()
        squares = sum(float(own[name].square().sum()) for name in own if name.startswith("exp_avg/"))
        moment = sum(ranks.collect(squares)) ** 0.5
        optimiser = getattr(self.engine, "_optimiser", None)
        found = {
            "unmoved": all(torch.equal(after[name], before[name]) for name in before),
            "norm": report.grad_norm,
            "clipped": moment / (1 - 0.9),
            "taken": self.taken,
            "offloaded": bool(
                getattr(optimiser, "cpu_offload", False) or getattr(optimiser, "offload_optimizer", False)
            ),
        }
        if self.rank == 0:
            target.write_text(json.dumps(found))
        self.engine.close()

    def finish(self, target: Path, figures: list[tuple[float, float]]) -> None:
        """Rank 0 leaves what the tests compare."""
        from pipeline.training.ema import model_state

        own = model_state(self.engine, None)
        with self.ema.swapped():
            logits = self.engine.predict(self.toy_batch(10_000, 4))
        averaged, after = model_state(self.engine, self.ema), model_state(self.engine, None)
        if self.rank == 0:
            target.mkdir()
            for name, tensors in (
                ("own", own),
                ("averaged", averaged),
                ("after", after),
                ("logits", {"logits": logits}),
            ):
                save_file(tensors, target / name)
            (target / "figures.json").write_text(json.dumps(figures))
        self.engine.close()


def train_all(rank: int, folder: str) -> None:
    """Runs on each of two ranks: every engine; then every reader from zero-2's and zero-3's checkpoints."""
    out = Path(folder)
    join(rank, RANKS, out)
    for name in ENGINES | MIXED:
        Run(name, world=RANKS, rank=rank).effects(out / f"{name}.json")
        run = Run(name, world=RANKS, rank=rank)
        figures = run.train(0, SAVED)
        snapshot(run, rank).write(out / f"{name}-saved")
        dist.barrier()
        run.finish(out / name, figures + run.train(SAVED, STEPS))
    for writer in ("zero-2", "zero-3"):
        for name in READERS:
            read_and_go_on(writer, name, out, world=RANKS, rank=rank)
    dist.barrier()
    dist.destroy_process_group()


def snapshot(run: Run, rank: int) -> Any:
    from pipeline.training.checkpoint import Progress, take_snapshot

    return take_snapshot(engine=run.engine, ema=run.ema, progress=Progress(step=SAVED), identity="toy")


def resume_alone(rank: int, folder: str) -> None:
    """Runs on a single rank what two ranks saved."""
    join(rank, 1, Path(folder))
    for writer in ("zero-2", "zero-3"):
        for name in ("ddp", "zero-1", "zero-3"):
            read_and_go_on(writer, name, Path(folder), world=1, rank=0)
    dist.destroy_process_group()


def read_and_go_on(writer: str, reader: str, out: Path, *, world: int, rank: int) -> None:
    run = Run(reader, world=world, rank=rank)
    run.train(0, 2)  # something to be overwritten
    from pipeline.training.checkpoint import read_checkpoint

    read_checkpoint(out / f"{writer}-saved", engine=run.engine, ema=run.ema, identity="toy")
    run.finish(out / f"{writer}-to-{reader}-on-{world}", run.train(SAVED, STEPS))


def join(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONWARNINGS", "ignore")
        patch.setenv("CXX", "/nonexistent")  # nothing may be compiled
        patch.setenv("TORCH_EXTENSIONS_DIR", str(folder / "extensions"))
        mp.spawn(train_all, (str(folder),), nprocs=RANKS)
        mp.spawn(resume_alone, (str(folder),), nprocs=1)
    assert not (folder / "extensions").exists()
    return folder


def figures(folder: Path) -> torch.Tensor:
    return torch.tensor(json.loads((folder / "figures.json").read_text()), dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_gives_the_losses_of_ddp(trained: Path, name: str) -> None:
    expected, got = figures(trained / "ddp"), figures(trained / name)
    assert expected.shape == (STEPS, 2)
    assert expected[-1, 0] < 0.5 * expected[0, 0]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXED)
def test_bf16_follows_fp32_with_weights_of_fp32(trained: Path, name: str) -> None:
    expected, got = figures(trained / "ddp"), figures(trained / name)
    assert not torch.equal(got, expected)
    torch.testing.assert_close(got[:, 0], expected[:, 0], rtol=0.02, atol=0)
    torch.testing.assert_close(got[:, 0], figures(trained / "ddp-bf16")[:, 0], rtol=0.02, atol=0)
    assert {tensor.dtype for tensor in load_file(trained / name / "own").values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_every_option_does_what_it_says(trained: Path, name: str) -> None:
    found, options = json.loads((trained / f"{name}.json").read_text()), ENGINES[name]
    assert found["unmoved"], "the learning rate of the step is not the optimiser's"
    assert found["norm"] > 1.3 * CLIP
    assert found["clipped"] == pytest.approx(CLIP, rel=1e-4)
    micro = options.get("micro_batch", BATCH // RANKS)
    assert found["taken"] == [micro] * (BATCH // RANKS // micro)
    assert found["offloaded"] == options.get("offload", False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["own", "averaged"])
@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_ends_with_the_weights_of_ddp(trained: Path, name: str, kind: str) -> None:
    expected, got = load_file(trained / "ddp" / kind), load_file(trained / name / kind)
    assert got.keys() == expected.keys()
    for parameter in expected:
        torch.testing.assert_close(got[parameter], expected[parameter], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_swapping_the_average_in_predicts_with_it_and_leaves_no_trace(trained: Path, name: str) -> None:
    sys.path.insert(0, str(TOY))
    from unit.pipeline.training.training_toy import ToyNetwork, forward, toy_batch

    network = ToyNetwork().eval()
    network.load_state_dict(load_file(trained / name / "averaged"))
    with torch.no_grad():
        expected = forward(network, toy_batch(10_000, 4))
    torch.testing.assert_close(load_file(trained / name / "logits")["logits"], expected, rtol=1e-5, atol=1e-6)
    own, after = load_file(trained / name / "own"), load_file(trained / name / "after")
    assert all(torch.equal(after[parameter], own[parameter]) for parameter in own)
    assert not torch.equal(own["into.weight"], load_file(trained / name / "averaged")["into.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("writer", ["zero-2", "zero-3"])
@pytest.mark.parametrize("reader", READERS)
def test_any_engine_goes_on_from_any_others_checkpoint(trained: Path, writer: str, reader: str) -> None:
    resumed, whole = trained / f"{writer}-to-{reader}-on-2", trained / writer
    torch.testing.assert_close(figures(resumed), figures(whole)[SAVED:], rtol=1e-5, atol=0)
    for kind in ("own", "averaged"):
        expected, got = load_file(whole / kind), load_file(resumed / kind)
        for parameter in expected:
            if writer == reader:
                assert torch.equal(got[parameter], expected[parameter]), f"{kind} {parameter}"
            torch.testing.assert_close(got[parameter], expected[parameter], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("writer", ["zero-2", "zero-3"])
@pytest.mark.parametrize("reader", ["ddp", "zero-1", "zero-3"])
def test_one_rank_goes_on_from_what_two_wrote(trained: Path, writer: str, reader: str) -> None:
    resumed, whole = trained / f"{writer}-to-{reader}-on-1", trained / writer
    torch.testing.assert_close(figures(resumed), figures(whole)[SAVED:], rtol=1e-5, atol=0)
    for kind in ("own", "averaged"):
        expected, got = load_file(whole / kind), load_file(resumed / kind)
        assert got.keys() == expected.keys()
        for parameter in expected:
            torch.testing.assert_close(got[parameter], expected[parameter], rtol=1e-5, atol=1e-6)
