"""The calibration of a plan: what is timed, on which device, and how the time for it is shared out."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ldznet.frozen_ldm import FrozenLDM
from ldznet.ldm_folder import resolve_ldm
from pipeline.cache.spec import CacheSpec
from pipeline.cache.stored_type import TORCH_DTYPES
from pipeline.datasets.opening import open_dataset
from pipeline.planning.calibration import HostTimer, HostTimes, first_prepared, sample_members
from pipeline.planning.pass_times import PassTimer, PassTimes
from pipeline.planning.set_work import SetWork
from pipeline.planning.step_time import time_training, training_bytes
from pipeline.precompute.commit import environment
from pipeline.precompute.networks import Networks
from pipeline.recipe import Recipe

if TYPE_CHECKING:
    from pipeline.loading.batch import Batch

_NETWORKS, _HOST, _READING, _TRAINING = 0.55, 0.2, 0.1, 0.15  # shares of the time
_STEPS = 4  # at least so many training steps are taken
_STEP_TO_FORWARD = 3  # a training step against a forward pass, about


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What measured."""

    device: str  # "cpu" or "cuda"
    processor: str
    threads: int  # of the networks, on a CPU
    cores: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StageTimes:
    """How long the stages of a set's work take, under one specification."""

    passes: PassTimes
    host: HostTimes


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a calibration gave."""

    machine: Machine
    seconds: float  # that it took, loading left out
    load_s: float  # loading the frozen LDM
    stages: Mapping[str, StageTimes]  # set's name and cache key ->
    read_s: float | None  # a sample of the training set
    train_s: float | None  # a sample of a training step on one rank; None where it was too dear to time

    def of(self, set_name: str, spec: CacheSpec) -> StageTimes | None:
        """A set's, or None where no sample of it is sound."""
        return self.stages.get(_name(set_name, spec))


def calibrate(recipe: Recipe, sets: Sequence[SetWork], *, seconds: float) -> Measured:
    """Time each stage of each set's work, and a training step.

    Args:
        recipe: the resolved recipe.
        sets: what is planned.
        seconds: about; loading the frozen LDM comes on top, and slow networks take what a few samples take.
    """
    started = time.perf_counter()
    with _networks(recipe) as networks:
        load_s = time.perf_counter() - started
        started = time.perf_counter()
        run = _Run(recipe, networks, seconds=seconds, specs=[spec for one in sets for spec in one.specs])
        for one in sets:
            run.time_set(one)
        machine = Machine(
            device=networks.ldm.device.type,
            processor=environment(networks.ldm).processor,
            threads=recipe.features.threads,
            cores=len(os.sched_getaffinity(0)),
        )
    train_s = run.time_step(recipe)
    return Measured(
        machine=machine,
        seconds=time.perf_counter() - started,
        load_s=load_s,
        stages=run.stages,
        read_s=run.read_s,
        train_s=train_s,
    )


class _Run:
    """A calibration under way."""

    def __init__(
        self, recipe: Recipe, networks: Networks, *, seconds: float, specs: Sequence[CacheSpec]
    ) -> None:
        self._recipe, self._networks, self._seconds = recipe, networks, seconds
        self._specs, self._shapes = len(specs), len(set(map(_shape, specs)))
        self._by_shape: dict[tuple[int, int], PassTimes] = {}
        self._batch: Batch | None = None
        self._train_passes: PassTimes | None = None
        self.stages: dict[str, StageTimes] = {}
        self.read_s: float | None = None

    def time_set(self, one: SetWork) -> None:
        """The stages of a set's work. Nothing is timed where no sample of it is sound."""
        members = sample_members(one.plan.table)
        read = open_dataset(one.plan.data).store.get
        for spec in one.specs:
            sample = first_prepared(spec, members, read)
            if sample is None:
                continue
            timer, shape = PassTimer(self._networks, spec, sample), _shape(spec)
            if shape not in self._by_shape:
                self._by_shape[shape] = timer.time_all(seconds=self._seconds * _NETWORKS / self._shapes)
            with HostTimer(spec, members, read, outputs=timer.outputs) as host:
                self.stages[_name(one.plan.set_name, spec)] = StageTimes(
                    passes=self._by_shape[shape], host=host.pack(seconds=self._seconds * _HOST / self._specs)
                )
                if one.plan.set_name == self._recipe.train_on and spec == one.plan.spec:
                    self._time_reading(host)
                    self._train_passes = self._by_shape[shape]

    def _time_reading(self, host: HostTimer) -> None:
        self.read_s, self._batch = host.read(
            window=self._recipe.loader.window,
            batch_size=self._recipe.train.micro_batch_size,
            seconds=self._seconds * _READING,
        )

    def time_step(self, recipe: Recipe) -> float | None:
        """Seconds a sample of a training step; None where a few steps would take too long, or too much memory."""
        passes = self._train_passes
        if self._batch is None or passes is None or recipe.plan.samples_per_second is not None:
            return None
        forward_s = passes.whole_unet_s * len(self._batch.keys) / recipe.features.feature_batch
        seconds = self._seconds * _TRAINING
        if forward_s * _STEP_TO_FORWARD * _STEPS > 2 * seconds:
            return None
        if training_bytes(recipe) > _free_memory() / 2:
            return None
        return time_training(recipe, self._batch, seconds=seconds)


def _name(set_name: str, spec: CacheSpec) -> str:
    return f"{set_name} {spec.key}"


def _shape(spec: CacheSpec) -> tuple[int, int]:
    """Equal where passes take equally long."""
    return spec.policy.view.size, max(spec.features.blocks, default=1)


@contextmanager
def _networks(recipe: Recipe) -> Iterator[Networks]:
    """The recipe's whole frozen LDM, where and as a worker would run it."""
    features = recipe.features
    on_gpu = torch.cuda.is_available()
    ldm = FrozenLDM.from_pretrained(
        resolve_ldm(recipe.ldm.source),
        device="cuda" if on_gpu else "cpu",
        dtype=TORCH_DTYPES[features.compute_dtype],
        channels_last=features.channels_last,
        compiled=features.compile,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(features.threads)
    exact = torch.backends.cudnn.flags(  # as a worker sets them
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    try:
        with exact, Networks(ldm, threads=features.threads) as networks:
            yield networks
    finally:
        torch.set_num_threads(threads)


def _free_memory() -> float:
    """Bytes: of the GPU that would train, else of the machine."""
    if torch.cuda.is_available():
        free: int = torch.cuda.mem_get_info()[0]
        return free
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
