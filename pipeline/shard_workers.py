"""Hands shards to Ray actors: each loads the frozen LDM once and computes whole shards.

Shards are pure, so a lost worker costs only the shard that it was at: that shard goes to another, a bounded number
of times. Faults of the user (`UserError`) are never tried again.
"""

import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from ldznet.errors import UserError
from ldznet.frozen_ldm import FrozenLDM
from ldznet.ldm_folder import ldm_digest, resolve_ldm
from pipeline.cache.entry import TORCH_DTYPES
from pipeline.cache.plan import ShardPlan
from pipeline.cache.receipt import Receipt
from pipeline.cache.spec import CacheSpec, FeaturesConfig
from pipeline.datasets.opening import DataConfig, open_dataset
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore
from pipeline.recipe import CacheConfig
from pipeline.shard_commit import commit_shard

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSetup:
    """What a worker needs to know once: the frozen LDM, its arithmetic, and where shards go."""

    ldm_source: str
    ldm_digest: str
    features: FeaturesConfig
    cache_url: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTask:
    """One shard to compute, of one set."""

    set_name: str
    spec: CacheSpec
    data: DataConfig
    plan: ShardPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """A user's mistake that a worker met. A value, so that it crosses processes as itself and is not tried again."""

    reason: str


class ShardWorker:
    """One process with the frozen LDM loaded, computing shards one after another."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        torch.set_num_threads(setup.features.threads)

    def compute(self, task: ShardTask) -> Receipt | Refused:
        """Compute and commit one shard."""
        try:
            data = open_dataset(task.data).store
            with torch.inference_mode():
                return commit_shard(task.plan, spec=task.spec, ldm=self._ldm, data=data, store=self._store)
        except UserError as error:
            return Refused(reason=str(error))

    @cached_property
    def _ldm(self) -> FrozenLDM:
        features = self._setup.features
        folder = resolve_ldm(self._setup.ldm_source)
        if ldm_digest(folder) != self._setup.ldm_digest:
            raise UserError(
                f"the frozen LDM {self._setup.ldm_source} is not the same on every node: copy one folder to all"
            )
        return FrozenLDM.from_pretrained(
            folder,
            device="cuda" if torch.cuda.is_available() else "cpu",
            dtype=TORCH_DTYPES[features.compute_dtype],
            last_block=max(features.blocks, default=1),
        )

    @cached_property
    def _store(self) -> ObjectStore:
        return open_store(self._setup.cache_url)


@dataclass(kw_only=True)
class _Pool:
    """Actors, what each is at, and what is still to do."""

    setup: WorkerSetup
    config: CacheConfig
    to_do: deque[ShardTask]
    running: dict[Any, tuple[ActorHandle, ShardTask]] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)

    def hire(self) -> ActorHandle:
        options = {"num_cpus": self.config.cpus_per_worker, "num_gpus": self.config.gpus_per_worker}
        return ray.remote(ShardWorker).options(**options).remote(self.setup)

    def give_next(self, actor: ActorHandle) -> None:
        if not self.to_do:
            ray.kill(actor)
            return
        task = self.to_do.popleft()
        self.attempts[task.plan.shard_id] += 1
        self.running[actor.compute.remote(task)] = (actor, task)

    def replace(self, task: ShardTask, error: RayActorError) -> None:
        shard, attempts = task.plan.shard_id, self.attempts[task.plan.shard_id]
        if attempts >= self.config.attempts:
            raise RuntimeError(
                f"shard {shard} lost its worker {attempts} times, the last time: {error}"
            ) from error
        logger.warning("a worker was lost at shard %s; another one takes it", shard)
        self.to_do.appendleft(task)
        self.give_next(self.hire())

    def dismiss(self) -> None:
        for actor, _ in self.running.values():
            ray.kill(actor)
        self.running.clear()


def run_shards(
    tasks: Sequence[ShardTask], *, setup: WorkerSetup, config: CacheConfig
) -> Iterator[tuple[ShardTask, Receipt]]:
    """Yield each task with its receipt, as they are committed, in any order.

    Raises:
        UserError: what a worker found to be the user's mistake.
        RuntimeError: a shard lost its worker `config.attempts` times.
    """
    pool = _Pool(setup=setup, config=config, to_do=deque(tasks))
    try:
        for _ in range(min(config.workers, len(tasks))):
            pool.give_next(pool.hire())
        while pool.running:
            (done,), _ = ray.wait(list(pool.running), num_returns=1)
            actor, task = pool.running.pop(done)
            try:
                receipt = ray.get(done)
            except RayActorError as error:
                pool.replace(task, error)
                continue
            if isinstance(receipt, Refused):
                raise UserError(receipt.reason)
            pool.give_next(actor)
            yield task, receipt
    finally:
        pool.dismiss()
