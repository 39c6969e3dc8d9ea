"""What checkpoints cost: a training step with them on their way in the background, waited for, and without any.

python -m tests.benchmarks.checkpoint_cost
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from uuid import uuid4

import torch

from ldznet.loss import mask_loss
from ldznet.modeling import NetworkConfig, SegmentationNetwork, UNetConfig, build_network
from pipeline.evaluation.scoring import run_network
from pipeline.loading.batch import Batch
from pipeline.loading.sample_order import Position
from pipeline.object_store.opening import open_store
from pipeline.training import loop, ranks
from pipeline.training.checkpoint import Snapshot
from pipeline.training.checkpoint_store import CheckpointStore
from pipeline.training.checkpoint_upload import CheckpointUpload
from pipeline.training.config import TrainConfig
from pipeline.training.ema import EMA
from pipeline.training.engine import build_engine
from tests.benchmarks.arguments import read_arguments
from tests.benchmarks.record import write_record
from tests.benchmarks.s3_server import s3_server
from tests.benchmarks.sides import ratio, spread, take_turns
from tests.benchmarks.temporary import memory_folder

BATCH, SIDE = 4, 32  # samples; of the latents
WITHOUT, BACKGROUND, WAITED = "no checkpoints", "in the background", "waited for"


def main(argv: Sequence[str] | None = None) -> None:
    arguments = read_arguments(__doc__, argv)
    torch.set_num_threads(1)
    every, widths = (2, (8, 8, 16, 16)) if arguments.quick else (10, (32, 64, 128, 128))
    with memory_folder() as folder, s3_server(folder) as bucket, ranks.process_group():
        measured = Measured(widths=widths, every=every, url=f"s3://{bucket}")
        sides = {
            side: (lambda side=side: measured.seconds_a_step(side)) for side in (WITHOUT, BACKGROUND, WAITED)
        }
        figures = take_turns(sides, rounds=arguments.rounds, warm_ups=0 if arguments.quick else 1)
    write_record(
        name="checkpoint_cost",
        value=ratio(figures, BACKGROUND, WITHOUT),
        unit="x a step without",
        better="lower",
        target=None,
        sides=figures,
        sides_unit="s a step",
        command="python -m tests.benchmarks.checkpoint_cost",
        about=(
            f"The training loop with plain DDP on one rank, LD-ZNet of {measured.parameters / 1e6:.1f} M parameters, "
            f"batch {BATCH}, latents {SIDE}x{SIDE}, fp32, one thread, a checkpoint of {measured.megabytes:.0f} MB "
            f"(weights, moments, average) every {every} steps to SeaweedFS on the same machine. In the background: "
            "training waits only while the state is copied in memory, and where the checkpoint before is not yet in "
            "its store. Steps are far apart or not as training is slow or quick: the details give what one checkpoint "
            "costs."
        ),
        details={
            "ratio of single rounds": spread(figures, BACKGROUND, WITHOUT),
            "seconds that training waited a checkpoint, in the background": median(
                measured.waits[BACKGROUND]
            ),
            "seconds that training waited a checkpoint, waited for": median(measured.waits[WAITED]),
        },
        threads=1,
        folder=arguments.folder,
    )


@dataclass(kw_only=True)
class Measured:
    """One network's trainings, each for a few checkpoints."""

    widths: tuple[int, int, int, int]
    every: int
    url: str
    waits: dict[str, list[float]] = field(default_factory=lambda: {BACKGROUND: [], WAITED: []})
    parameters: int = 0
    megabytes: float = 0.0

    def seconds_a_step(self, side: str) -> float:
        """From the step after the first checkpoint to that after the third."""
        config = TrainConfig(
            engine="ddp",
            steps=4 * self.every - 1,
            batch_size=BATCH,
            lr=1e-4,
            checkpoint_every=None if side == WITHOUT else self.every,
        )
        network = self._network()
        source = _Timed(_batch(network), length=config.steps or 1)
        engine = build_engine(network, forward=run_network, loss=mask_loss, config=config)
        store = CheckpointStore(open_store(f"{self.url}/{uuid4().hex}"), keep=1)
        before = loop.CheckpointUpload
        try:
            loop.CheckpointUpload = _WaitedFor if side == WAITED else before  # type: ignore[misc]  # the side itself
            loop.train(
                engine=engine,
                ema=EMA(engine),
                source=source,
                config=config,
                observer=_Waits(self.waits.get(side, [])),
                checkpoints=None if side == WITHOUT else store,
            )
        finally:
            loop.CheckpointUpload = before  # type: ignore[misc]  # as above
        first, last = self.every + 1, 3 * self.every + 1
        return (source.asked[last] - source.asked[first]) / (last - first)

    def _network(self) -> SegmentationNetwork:
        torch.manual_seed(0)
        heads = {"norm_num_groups": 4, "attention_head_dim": 4, "cross_attention_dim": 64}
        unet = UNetConfig(block_out_channels=self.widths, **heads)
        network = build_network(NetworkConfig(unet=unet, positional_latent_side=SIDE))
        self.parameters = sum(parameter.numel() for parameter in network.parameters())
        self.megabytes = 4 * 4 * self.parameters / 1e6
        return network


class _WaitedFor(CheckpointUpload):
    """A checkpoint is in its store before training goes on."""

    def start(self, snapshot: Snapshot) -> None:
        super().start(snapshot)
        assert self._task is not None
        self._task.wait()
        self.advance(busy=0, failed=int(self.failed))
        self._task.wait()


class _Timed:
    """One batch again and again, and when each was asked for."""

    def __init__(self, batch: Batch, *, length: int) -> None:
        self.asked: list[float] = []
        self._batch, self._length = batch, length

    def __len__(self) -> int:
        return self._length

    def epoch(self, position: Position) -> Iterator[Batch]:
        for _ in range(position.batch, self._length):
            self.asked.append(time.perf_counter())
            yield self._batch


class _Waits:
    """Keeps how long training waited for each checkpoint."""

    def __init__(self, seconds: list[float]) -> None:
        self._seconds = seconds

    def on_start(self, *, step: int, total: int) -> None: ...

    def on_step(self, metrics: Mapping[str, float], *, step: int) -> None: ...

    def on_validation(self, metrics: Mapping[str, float], *, step: int, best: bool) -> None: ...

    def on_checkpoint(self, location: str, *, step: int, seconds: float) -> None:
        self._seconds.append(seconds)


def _batch(network: Any) -> Batch:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    features = {
        number: randn(BATCH, block.channels, SIDE // block.stride, SIDE // block.stride)
        for number, block in network._blocks.items()
    }
    return Batch(
        keys=tuple(str(number) for number in range(BATCH)),
        latents=randn(BATCH, 4, SIDE, SIDE),
        context=randn(BATCH, 77, 64),
        features=features,
        masks=(randn(BATCH, 1, 8 * SIDE, 8 * SIDE) > 0).float(),
        weight=torch.ones(BATCH),
    )


if __name__ == "__main__":
    main()
