"""What checkpoints cost a training step: steps with one on its way to S3 beside them, against steps without any.

python -m tests.benchmarks.checkpoint_upload
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from ldznet.loss import mask_loss
from ldznet.modeling import NetworkConfig, SegmentationNetwork, UNetConfig, build_network
from pipeline.evaluation.scoring import run_network
from pipeline.loading.batch import Batch
from pipeline.loading.sample_order import Position
from pipeline.object_store.opening import open_store
from pipeline.training import ranks
from pipeline.training.checkpoint import Progress, take_snapshot
from pipeline.training.checkpoint_store import CheckpointStore
from pipeline.training.checkpoint_upload import CheckpointUpload
from pipeline.training.config import TrainConfig
from pipeline.training.ema import EMA
from pipeline.training.engine import build_engine
from pipeline.training.loop import train
from tests.benchmarks.arguments import Arguments, read_arguments
from tests.benchmarks.record import write_record
from tests.benchmarks.s3_server import s3_server
from tests.benchmarks.sides import ratio, spread, take_turns
from tests.benchmarks.temporary import memory_folder

BATCH, SIDE, CONTEXT = 4, 32, 64  # samples; of the latents; of a token
WITHOUT, BESIDE, ALONE = "no checkpoints", "uploading beside training", "one waited for"


def main(argv: Sequence[str] | None = None) -> None:
    arguments = read_arguments(__doc__, argv)
    torch.set_num_threads(1)
    every, widths = (2, (8, 8, 16, 16)) if arguments.quick else (10, (32, 64, 128, 128))
    with memory_folder() as folder, s3_server(folder) as bucket, ranks.process_group():
        trainings = Trainings(widths=widths, every=every, url=f"s3://{bucket}")
        sides: dict[str, Callable[[], float]] = {
            WITHOUT: lambda: trainings.seconds_a_step(checkpoints=False),
            BESIDE: lambda: trainings.seconds_a_step(checkpoints=True),
            ALONE: trainings.seconds_waited_for,
        }
        figures = take_turns(sides, rounds=arguments.rounds)
    _write(arguments, trainings, figures)


def _write(arguments: Arguments, trainings: "Trainings", figures: dict[str, list[float]]) -> None:
    extra = (median(figures[BESIDE]) - median(figures[WITHOUT])) * trainings.every
    write_record(
        name="checkpoint_upload",
        value=ratio(figures, BESIDE, WITHOUT),
        unit="x of a step without",
        better="lower",
        target=None,
        sides={label: figures[label] for label in (WITHOUT, BESIDE)},
        sides_unit="s a step",
        command="python -m tests.benchmarks.checkpoint_upload",
        about=(
            f"The training loop with DDP on one rank, an LD-ZNet of {trainings.parameters / 1e6:.1f} M parameters, "
            f"batch {BATCH}, latents {SIDE}x{SIDE}, fp32, one thread; a checkpoint of {trainings.megabytes:.0f} MB "
            f"(weights, moments, average) every {trainings.every} steps to SeaweedFS on the same machine, whose own "
            "work counts against the training here. Steps are timed from the one after the first checkpoint to the "
            "one after the third: two copies in memory, two uploads. The value holds for so many megabytes in so many "
            "seconds of steps; the details give what one checkpoint costs."
        ),
        details={
            "ratio of single rounds": spread(figures, BESIDE, WITHOUT),
            "seconds of training that a checkpoint costs, beside": round(extra, 3),
            "of them waiting: copying the state, and for the checkpoint before": round(
                median(trainings.waits), 3
            ),
            "seconds that a checkpoint takes, waited for": round(median(figures[ALONE]), 3),
        },
        threads=1,
        folder=arguments.folder,
    )


@dataclass(kw_only=True)
class Trainings:
    """Trainings of equal networks, each for a few checkpoints."""

    widths: tuple[int, int, int, int]
    every: int  # steps
    url: str
    waits: list[float] = field(default_factory=list)  # seconds for which training waited, of each checkpoint
    parameters: int = 0

    @property
    def megabytes(self) -> float:
        """Of a checkpoint: weights, two moments, the average, in fp32."""
        return 4 * 4 * self.parameters / 1e6

    def seconds_a_step(self, *, checkpoints: bool) -> float:
        """Mean of a step, from that after the first checkpoint to that after the third."""
        config = self._config(checkpoint_every=self.every if checkpoints else None)
        network = self._network()
        source = TimedBatch(made_batch(network), length=config.total_steps(1))
        engine = build_engine(network, forward=run_network, loss=mask_loss, config=config)
        train(
            engine=engine,
            ema=EMA(engine),
            source=source,
            config=config,
            observer=Waits(self.waits),
            checkpoints=self._store() if checkpoints else None,
        )
        engine.close()
        first, last = self.every, 3 * self.every
        return (source.asked[last] - source.asked[first]) / (last - first)

    def seconds_waited_for(self) -> float:
        """One checkpoint from the copy in memory to its seal, while nothing trains."""
        network, config = self._network(), self._config(checkpoint_every=None)
        engine = build_engine(network, forward=run_network, loss=mask_loss, config=config)
        ema = EMA(engine)
        engine.train_step(made_batch(network), lr=1e-4)  # moments are there after a step
        upload, began = CheckpointUpload(self._store()), time.perf_counter()
        upload.start(take_snapshot(engine=engine, ema=ema, progress=Progress(step=1), identity=""))
        upload.settle()
        seconds = time.perf_counter() - began
        engine.close()
        return seconds

    def _config(self, *, checkpoint_every: int | None) -> TrainConfig:
        return TrainConfig(
            engine="ddp",
            steps=3 * self.every + 1,
            batch_size=BATCH,
            lr=1e-4,
            checkpoint_every=checkpoint_every,
        )

    def _network(self) -> SegmentationNetwork:
        torch.manual_seed(0)
        unet = UNetConfig(
            block_out_channels=self.widths,
            norm_num_groups=4,
            attention_head_dim=2,
            cross_attention_dim=CONTEXT,
        )
        network = build_network(NetworkConfig(unet=unet, positional_latent_side=SIDE))
        self.parameters = sum(parameter.numel() for parameter in network.parameters())
        return network

    def _store(self) -> CheckpointStore:
        return CheckpointStore(open_store(f"{self.url}/{uuid4().hex}"), keep=1)


class TimedBatch:
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


class Waits:
    """Keeps how long training waited for each checkpoint."""

    def __init__(self, seconds: list[float]) -> None:
        self._seconds = seconds

    def on_start(self, *, step: int, total: int) -> None: ...

    def on_step(self, metrics: Mapping[str, float], *, step: int) -> None: ...

    def on_validation(self, metrics: Mapping[str, float], *, step: int, best: bool) -> None: ...

    def on_checkpoint(self, location: str, *, step: int, seconds: float) -> None:
        self._seconds.append(seconds)


def made_batch(network: Any) -> Batch:
    """Random numbers in the shapes that the network takes."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return Batch(
        keys=tuple(map(str, range(BATCH))),
        latents=randn(BATCH, 4, SIDE, SIDE),
        context=randn(BATCH, 77, CONTEXT),
        features={
            number: randn(BATCH, block.channels, SIDE // block.stride, SIDE // block.stride)
            for number, block in network._blocks.items()
        },
        masks=(randn(BATCH, 1, 8 * SIDE, 8 * SIDE) > 0).float(),
        weight=torch.ones(BATCH),
    )


if __name__ == "__main__":
    main()
