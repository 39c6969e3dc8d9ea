"""How samples come from the cache."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ldznet.config import Config
from pipeline.loading.sample_order import Remainder


class LoaderConfig(Config):
    """How samples come from the cache."""

    mode: Literal["indexed", "sequential"] = "indexed"  # sequential: stock webdataset, for training alone
    window: int = Field(default=8, ge=1)  # neighbours fetched by one ranged GET
    shuffle_buffer: int = Field(default=64, ge=1)  # samples a process, of mode=sequential
    remainder: Remainder = "drop"  # training's last samples, too few for a batch; evaluation always pads
    concurrency: int = Field(default=8, ge=1)  # ranged GETs in flight a rank
    batches_ahead: int = Field(default=4, ge=1)
    ahead_mebibytes: int = Field(default=1024, ge=1)  # a rank, however many batches that is
    processes: int = Field(default=0, ge=0)  # that read and decode, a rank; 0: threads of the rank's own
    on_corrupt: Literal["fail", "skip"] = "fail"  # skip: weight 0, counted, logged; evaluation always fails
    max_corrupt_share: float = Field(default=0.01, ge=0, le=1)  # of an epoch's samples; above it a skip stops
    local_cache: str | None = None  # a folder on local disk, shared by the node's processes
    local_cache_gibibytes: float = Field(default=64, gt=0)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.mode == "indexed":
            return self
        for key, refused, why in (
            ("local_cache", self.local_cache is not None, "streams whole shards"),
            ("on_corrupt=skip", self.on_corrupt == "skip", "checks no sample's checksum"),
            ("remainder=pad", self.remainder == "pad", "has no last batch of its own"),
        ):
            if refused:
                raise ValueError(f"{key} goes with loader.mode=indexed: mode=sequential {why}")
        return self

    def identity(self) -> dict[str, object]:
        """What changes the batches of a training: a checkpoint asks the same of the run that goes on from it."""
        if self.mode == "sequential":
            return {
                "mode": self.mode,
                "shuffle_buffer": self.shuffle_buffer,
                "processes": max(1, self.processes),
            }
        return {"window": self.window} | ({} if self.remainder == "drop" else {"remainder": self.remainder})
