"""How probes are trained and scored."""

from typing import Annotated

from pydantic import Field

from ldznet.config import Config
from pipeline.cache.spec import BLOCK_COUNT

Positive = Annotated[int, Field(gt=0)]


class ProbeConfig(Config):
    """A small decoder for every block and timestep of a cache whose sets have `timesteps.grid`."""

    train_on: str = "train"
    score_on: str = "val"
    control_on: str | None = None  # a set with untrue phrases, scored by the same decoders
    blocks: tuple[Annotated[int, Field(ge=1, le=BLOCK_COUNT)], ...] = ()  # none: all that are cached
    steps: Positive = 400
    batch_size: Positive = 32
    lr: Annotated[float, Field(gt=0)] = 2e-3
    hidden: Positive = 64  # width of the decoder
    side: Positive = 32  # of the logits, which are resized to the mask's size
    bootstrap: Annotated[int, Field(ge=0)] = 1000  # resamples of the images, for the intervals
    seed: Annotated[int, Field(ge=0)] = 0
    threads: Positive = 1  # CPU threads a cell

    @property
    def sets(self) -> tuple[str, ...]:
        """The sets that it reads: to train on, to score on, and the control where there is one."""
        return (self.train_on, self.score_on, *([self.control_on] if self.control_on else []))
