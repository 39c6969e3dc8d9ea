"""From seconds of each stage to hours of workers: stages overlap, so the slowest one counts."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Literal, Self

from pipeline.planning.calibration_run import Machine
from pipeline.precompute.worker_pool import SHARDS_AT_ONCE
from pipeline.recipe import CacheConfig

_DECODERS = 2  # threads that decode, a shard

Bound = Literal["the networks", "decoding", "packing", "the CPU's cores"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSeconds:
    """Seconds of work in each stage, on one thread each, whoever does it."""

    decode_s: float = 0.0
    vae_s: float = 0.0
    text_s: float = 0.0
    unet_s: float = 0.0
    pack_s: float = 0.0
    convert_s: float = 0.0  # reading what is converted to another stored type

    @property
    def networks_s(self) -> float:
        """Of the device."""
        return self.vae_s + self.text_s + self.unet_s

    @classmethod
    def total(cls, parts: Iterable["StageSeconds"]) -> Self:
        """All together."""
        every = list(parts)
        return cls(**{each.name: sum(getattr(part, each.name) for part in every) for each in fields(cls)})


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerTime:
    """How long so many workers take, in steady state: Ray's start and loading are left out."""

    workers: int
    seconds: float  # from the first shard to the last
    worker_seconds: float  # of all workers together, waiting at the end left out
    bound_by: Bound


def worker_time(
    stages: StageSeconds, *, shards: int, workers: int, machine: Machine, config: CacheConfig
) -> WorkerTime:
    """How long workers take for shards.

    A worker is at two shards: one thread feeds the device, and each shard has a thread that packs and two that decode.
    So the busiest of them bounds it, or the cores that it has: those reserved, or its share of the machine at hand.

    Args:
        stages: of all shards.
        shards: how many; whole shards go to workers, so that some wait at the end.
        workers: how many.
        machine: what measured; workers are taken to run on such machines.
        config: what a worker reserves.
    """
    cores = max(config.cpus_per_worker, machine.cores / workers, 1)
    host_s = stages.decode_s + stages.pack_s + stages.convert_s
    network_cores = min(machine.threads, machine.cores) if machine.device == "cpu" else 0
    bounds: Mapping[Bound, float] = {
        "the networks": stages.networks_s,
        "decoding": stages.decode_s / (_DECODERS * SHARDS_AT_ONCE),
        "packing": (stages.pack_s + stages.convert_s) / SHARDS_AT_ONCE,
        "the CPU's cores": (host_s + network_cores * stages.networks_s) / cores,
    }
    bound_by = max(bounds, key=lambda bound: bounds[bound])
    seconds = bounds[bound_by]
    rounds = math.ceil(shards / workers) / (shards / workers) if shards else 1.0
    return WorkerTime(
        workers=workers, seconds=seconds / workers * rounds, worker_seconds=seconds, bound_by=bound_by
    )
