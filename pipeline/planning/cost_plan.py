"""What a precompute and training on it will take: counts, bytes, requests, hours, and what caching saves.

Nothing is computed for the cache and nothing is written to it. Counts follow from annotations; times, and the bytes of
masks and pictures, from a calibration, where there is one.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from ldznet.frozen_ldm import FrozenLDM
from ldznet.ldm_folder import resolve_ldm
from pipeline.cache.spec import CacheSpec
from pipeline.object_store.store import ObjectStore
from pipeline.planning.calibration import HostTimes
from pipeline.planning.calibration_run import Measured, calibrate
from pipeline.planning.money import Money, Spending, money
from pipeline.planning.set_work import SetWork, set_work
from pipeline.planning.training_cost import Payback, TrainingCost, epoch_gets, payback
from pipeline.planning.worker_time import StageSeconds, WorkerTime, worker_time
from pipeline.planning.workload import Passes, Workload
from pipeline.precompute.increment import KeptShard
from pipeline.precompute.sets import plan_sets, sample_bytes
from pipeline.recipe import Recipe

_TAR_RECORD = 10_240  # a tar ends on a multiple of it
_TAR_END = 1024
_MANIFEST_PUTS = (
    6  # specification, shard list, index, what was left out, manifest, and the answer to the request
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SetCost:
    """One set. What the cache holds already is told, and not counted again."""

    set_name: str
    dataset: str
    split: str
    members: int  # samples times draws
    kept_shards: int
    kept_samples: int
    kept_bytes: int
    committed_shards: int  # in no manifest yet: of a run that was interrupted, or of a set before this one
    committed_bytes: int  # as far as can be told without reading their receipts
    shards: int  # to commit
    members_to_compute: int
    members_to_convert: int  # from another stored type
    samples: int  # expected of them: some have nothing of their phrase in the view, or are faulty
    photos: int  # to decode
    views: int  # to encode, at most where nothing was calibrated
    prompts: int  # to encode
    vae_passes: int
    text_passes: int
    unet_passes: int
    counted_exactly: bool  # every shard was counted, not a part of them
    sample_bytes: float
    bytes: int  # to write
    puts: int
    gets: int  # of the data set, of receipts, and of what is converted
    stages: StageSeconds | None  # None without a calibration


@dataclass(frozen=True, kw_only=True, slots=True)
class CostPlan:
    """The plan of a recipe."""

    recipe: str
    cache_url: str
    measured: Measured | None
    sets: tuple[SetCost, ...]
    worker_times: tuple[WorkerTime, ...]  # for several numbers of workers; none without a calibration
    training: TrainingCost | None  # None where the training set has no samples
    money: Money


def make_cost_plan(recipe: Recipe, *, store: ObjectStore, seconds: float | None) -> CostPlan:
    """Plan a recipe's sets, calibrate, and reckon.

    Args:
        recipe: the resolved recipe.
        store: the cache. It is read, never written to.
        seconds: what the calibration may take, about; None: no calibration, so no hours.

    Raises:
        UserError: the data set or the frozen LDM is missing, or too many samples are known to be faulty.
    """
    shapes = FrozenLDM.from_pretrained(resolve_ldm(recipe.ldm.source), components=())
    with ExitStack() as tables:
        works: list[SetWork] = []
        planned: set[tuple[str, str]] = set()
        for plan in plan_sets(recipe, store=store):
            tables.enter_context(plan.table)
            works.append(set_work(recipe, plan, store=store, planned=planned))
        measured = None if seconds is None else calibrate(recipe, works, seconds=seconds)
        reckoning = _Reckoning(recipe, shapes, measured)
        sets = tuple(reckoning.set_cost(work) for work in works)
        train_on = next(work for work in works if work.plan.set_name == recipe.train_on)
        training = reckoning.training(train_on, next(one for one in sets if one.set_name == recipe.train_on))
    return CostPlan(
        recipe=recipe.name,
        cache_url=store.url,
        measured=measured,
        sets=sets,
        worker_times=tuple(reckoning.worker_times(sets)),
        training=training,
        money=reckoning.money(sets, training),
    )


class _Reckoning:
    """From workloads and what was measured to what things take."""

    def __init__(self, recipe: Recipe, shapes: FrozenLDM, measured: Measured | None) -> None:
        self._recipe, self._shapes, self._measured = recipe, shapes, measured

    def set_cost(self, work: SetWork) -> SetCost:
        """What a set takes."""
        plan, loads, kept = work.plan, work.loads, work.plan.increment.kept
        computed = [load for load in loads if not load.converted]
        passes = [self._passes(load) for load in computed]
        samples = sum(self._samples(load) for load in loads)
        written = sum(self._bytes(load) for load in loads)
        taken_over = [shard for shard in kept if shard.conversion is None]
        columns = max((_columns(shard) for shard in kept), default=0)
        shards = sum(load.shards for load in loads)
        return SetCost(
            set_name=plan.set_name,
            dataset=plan.dataset,
            split=plan.split,
            members=plan.members,
            kept_shards=len(taken_over),
            kept_samples=sum(shard.source.reference.samples for shard in taken_over),
            kept_bytes=sum(_kept_bytes(shard) for shard in taken_over),
            committed_shards=len(work.committed),
            committed_bytes=round(
                sum(
                    self._kept(plan.set_name, one.spec, len(one.shard.rows))
                    * self._sample_bytes(plan.set_name, one.spec)
                    for one in work.committed
                )
            ),
            shards=shards,
            members_to_compute=sum(load.members for load in computed),
            members_to_convert=sum(load.members for load in loads if load.converted),
            samples=samples,
            photos=sum(load.photos for load in computed),
            views=sum(self._views(load) for load in computed),
            prompts=sum(load.prompts for load in computed),
            vae_passes=sum(one.vae for one in passes),
            text_passes=sum(one.text for one in passes),
            unet_passes=sum(one.unet for one in passes),
            counted_exactly=all(load.exact for load in loads),
            sample_bytes=self._sample_bytes(plan.set_name, plan.spec),
            bytes=written,
            puts=2 * shards + (0 if work.standing else _MANIFEST_PUTS + columns),
            gets=sum(load.shards + load.objects + load.reads for load in loads)
            + (0 if work.standing else 1 + len(work.committed)),
            stages=self._stages(loads),
        )

    def training(self, work: SetWork, cost: SetCost) -> TrainingCost | None:
        """What training reads, and when caching pays."""
        shards = list(self._shards(work))
        of_first = [(size, objects) for draw, size, objects in shards if draw == 0]
        sizes, objects = zip(*of_first, strict=True)
        samples, stored = sum(sizes), sum(size for _, size, _ in shards)
        if not samples:
            return None
        train, options = self._recipe.train, self._recipe.plan
        each = (cost.kept_bytes + cost.committed_bytes + cost.bytes) / stored
        rate = options.samples_per_second
        if rate is None and self._measured is not None and self._measured.train_s is not None:
            rate = 1 / self._measured.train_s
        epochs = options.epochs
        if epochs is None:
            epochs = train.epochs if train.steps is None else train.steps * train.batch_size / samples
        return TrainingCost(
            set_name=cost.set_name,
            samples=samples,
            epochs=epochs,
            sample_bytes=each,
            gets=epoch_gets(sizes, objects=objects, recipe=self._recipe),
            bytes=round(each * samples),
            ranks=train.max_workers,
            samples_per_second=rate,
            bytes_per_second=None if rate is None else rate * each,
            precompute_s=self._worker_seconds(cost),
            paybacks=tuple(self._paybacks(work, cost, samples=samples, each=each, rate=rate)),
        )

    def worker_times(self, sets: tuple[SetCost, ...]) -> Iterator[WorkerTime]:
        """How long one worker takes, so many as the recipe has, and other numbers."""
        for workers in sorted({1, self._recipe.cache.max_workers, *self._recipe.plan.workers}):
            if self._measured is not None:
                yield worker_time(
                    StageSeconds.total(one.stages for one in sets if one.stages is not None),
                    shards=sum(one.shards for one in sets),
                    workers=workers,
                    machine=self._measured.machine,
                    config=self._recipe.cache,
                )

    def money(self, sets: tuple[SetCost, ...], training: TrainingCost | None) -> Money:
        """What it costs, as far as prices are given."""
        measured = self._measured
        last = training.paybacks[-1] if training is not None and training.paybacks else None
        seconds = [self._worker_seconds(one) for one in sets]
        in_all = training.samples if training is not None else 0
        spending = Spending(
            on_gpu=measured is not None and measured.machine.device == "cuda",
            precompute_s=None if measured is None else sum(one for one in seconds if one is not None),
            puts=sum(one.puts for one in sets),
            gets=sum(one.gets for one in sets),
            stored_bytes=sum(one.kept_bytes + one.committed_bytes + one.bytes for one in sets),
            epoch_gets=training.gets if training is not None else 0,
            epoch_bytes=training.bytes if training is not None else 0,
            epoch_cached_s=None if last is None else in_all * (last.cached_s - last.step_s),
            epoch_online_s=None if last is None else in_all * (last.online_s - last.step_s),
        )
        return money(self._recipe.plan.prices, spending, months=self._recipe.plan.months)

    def _paybacks(
        self, work: SetWork, cost: SetCost, *, samples: int, each: float, rate: float | None
    ) -> Iterator[Payback]:
        measured, precompute_s = self._measured, self._worker_seconds(cost)
        times = None if measured is None else measured.of(cost.set_name, work.plan.spec)
        if measured is None or times is None or measured.read_s is None or precompute_s is None:
            return
        bandwidth = self._recipe.plan.read_megabytes_per_second
        read_s = measured.read_s if bandwidth is None else max(measured.read_s, each / (bandwidth * 1e6))
        for step_s in (0.0, *(() if rate is None else (1 / rate,))):
            yield payback(
                samples=samples,
                precompute_s=precompute_s,
                passes=times.passes,
                host=times.host,
                read_s=read_s,
                step_s=step_s,
                features=work.plan.spec.features,
            )

    def _worker_seconds(self, cost: SetCost) -> float | None:
        if self._measured is None or cost.stages is None:
            return None
        cache = self._recipe.cache
        return worker_time(
            cost.stages,
            shards=cost.shards,
            workers=cache.max_workers,
            machine=self._measured.machine,
            config=cache,
        ).worker_seconds

    def _stages(self, loads: Sequence[Workload]) -> StageSeconds | None:
        if self._measured is None:
            return None
        return StageSeconds.total(self._stages_of(load, self._measured) for load in loads)

    def _stages_of(self, load: Workload, measured: Measured) -> StageSeconds:
        times = measured.of(load.set_name, load.spec)
        if times is None:  # no sample of it is sound: there is nothing to compute
            return StageSeconds()
        host, each = times.host, times.passes
        pack_s = self._samples(load) * host.pack_s
        if load.converted:
            return StageSeconds(pack_s=pack_s, convert_s=self._samples(load) * (measured.read_s or 0.0))
        passes = self._passes(load)
        return StageSeconds(
            decode_s=load.members * host.decode_s,
            vae_s=passes.vae * each.vae_s,
            text_s=passes.text * each.text_s,
            unet_s=passes.unet * each.unet_s,
            pack_s=pack_s,
        )

    def _passes(self, load: Workload) -> Passes:
        host = self._host(load.set_name, load.spec)
        return load.passes(
            view_share=1.0 if host is None else host.view_share,
            kept_share=1.0 if host is None else host.kept_share,
        )

    def _views(self, load: Workload) -> int:
        host = self._host(load.set_name, load.spec)
        return load.views(1.0 if host is None else host.view_share)

    def _samples(self, load: Workload) -> int:
        return load.members if load.converted else self._kept(load.set_name, load.spec, load.members)

    def _kept(self, set_name: str, spec: CacheSpec, members: int) -> int:
        """Samples expected of members."""
        host = self._host(set_name, spec)
        return members if host is None else round(members * host.kept_share)

    def _bytes(self, load: Workload) -> int:
        each = self._sample_bytes(load.set_name, load.spec)
        kept = self._samples(load) / load.members
        return sum(_tar_bytes(members * kept * each) for members in load.shard_members)

    def _sample_bytes(self, set_name: str, spec: CacheSpec) -> float:
        host = self._host(set_name, spec)
        return float(sample_bytes(spec, self._shapes)) if host is None else host.sample_bytes

    def _host(self, set_name: str, spec: CacheSpec) -> HostTimes | None:
        times = None if self._measured is None else self._measured.of(set_name, spec)
        return None if times is None else times.host

    def _shards(self, work: SetWork) -> Iterator[tuple[int, int, int]]:
        """Draw, samples and objects of each shard that the set will have."""
        for kept in work.plan.increment.kept:
            yield kept.source.reference.draw, kept.source.reference.samples, 1 + _columns(kept)
        for fresh in work.plan.increment.fresh:
            shard = fresh.shard
            yield shard.draw, self._kept(work.plan.set_name, fresh.spec, len(shard.rows)), 1


def _tar_bytes(content: float) -> int:
    return math.ceil((content + _TAR_END) / _TAR_RECORD) * _TAR_RECORD


def _columns(kept: KeptShard) -> int:
    """Columns of further blocks that a shard will have."""
    there = len(kept.source.reference.columns) if kept.conversion is None else 0
    return there + (kept.column is not None)


def _kept_bytes(kept: KeptShard) -> int:
    reference = kept.source.reference
    return reference.size + sum(column.size for column in reference.columns)
