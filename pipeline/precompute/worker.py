"""One process that computes shards, two at a time: one has the device while the other decodes, packs or uploads."""

import os
import pickle
import socket
import sys
import threading
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch

from ldznet.errors import UserError
from ldznet.frozen_ldm import FrozenLDM
from ldznet.ldm_folder import ldm_digest, resolve_ldm
from pipeline.cache.committed_shard import CommittedShard
from pipeline.cache.plan import PackedPlan, ShardPlan
from pipeline.cache.receipt import Receipt
from pipeline.cache.spec import CacheSpec, FeaturesConfig
from pipeline.cache.stored_type import TORCH_DTYPES
from pipeline.datasets.opening import DataConfig, open_dataset
from pipeline.freed_memory import keep_freed_memory
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore
from pipeline.precompute.commit import commit_shard
from pipeline.precompute.conversion import convert_shard
from pipeline.precompute.metrics import PrecomputeMetrics
from pipeline.precompute.networks import Networks
from pipeline.precompute.scratch import sweep_stale_folders
from pipeline.precompute.shard_repair import repair_conversion, repair_shard
from pipeline.precompute.watch import ShardWatch, WorkerState

# Between the networks' thread, which takes the interpreter's lock back after every operation, and those that decode
# and pack: Python's 5 ms would be paid again and again.
_SWITCH_INTERVAL_S = 0.0005


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSetup:
    """What a worker needs to know once: the frozen LDM, its arithmetic, and where shards go."""

    ldm_source: str
    ldm_digest: str
    features: FeaturesConfig
    cache_url: str
    workers: int = 1  # that write to the cache at once: each takes its share of what the store serves
    decoders: int = 2  # threads that decode, a shard


@dataclass(frozen=True, kw_only=True)
class SetOfShards:
    """What the shards of a set have in common. It is pickled once, and not once a shard."""

    set_name: str
    spec: CacheSpec
    data: DataConfig

    @cached_property
    def cache_key(self) -> str:
        """Of the numeric specification."""
        return self.spec.key

    def __reduce__(self) -> tuple[Any, ...]:
        return _set_of_shards, (self._pickled,)

    @cached_property
    def _pickled(self) -> bytes:
        return pickle.dumps((self.set_name, self.spec, self.data))


@cache
def _set_of_shards(pickled: bytes) -> SetOfShards:
    set_name, spec, data = pickle.loads(pickled)  # noqa: S301 - what the run's own driver pickled, sent by Ray
    return SetOfShards(set_name=set_name, spec=spec, data=data)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTask:
    """One shard to commit, of one set: to compute, or to convert from `source`, the same samples in another type."""

    of: SetOfShards
    plan: ShardPlan | PackedPlan
    source: CommittedShard | None = None
    repair: bool = False  # compute it though a receipt stands, and put right what is not as the receipt says

    @property
    def name(self) -> tuple[str, str]:
        """Cache key and shard id."""
        return self.of.cache_key, self.plan.shard_id

    def pack(self) -> bytes:
        """For `ShardWorker.commit_packed`."""
        return pickle.dumps(self, protocol=5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """A user's mistake that a worker met. A value, so that it crosses processes as itself and is not tried again."""

    reason: str


def unpack_outcome(packed: bytes) -> CommittedShard | Refused:
    """What `ShardWorker.commit_packed` sent."""
    outcome: CommittedShard | Refused = pickle.loads(packed)  # noqa: S301 - the run's own worker pickled it
    return outcome


class ShardWorker:
    """One process with the frozen LDM loaded. Several threads may call `commit` at once, and `state` meanwhile."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        self._loading = threading.Lock()
        self._watches: list[ShardWatch] = []
        torch.set_num_threads(setup.features.threads)
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        if not torch.cuda.is_available():
            keep_freed_memory()
        sweep_stale_folders()

    def commit(self, task: ShardTask) -> CommittedShard | Refused:
        """Compute or convert one shard, and commit it. What comes back is a tenth of its receipt."""
        watch = ShardWatch(shard_id=task.plan.shard_id, members=len(task.plan))
        self._watches.append(watch)
        try:
            with self._metrics.shard(task.of.cache_key, watch) as counted:
                receipt = self._commit(task, watch)
                counted(receipt)
                return CommittedShard.from_receipts(receipt)
        except UserError as error:
            return Refused(reason=str(error))
        finally:
            self._watches.remove(watch)

    def commit_packed(self, task: bytes) -> bytes:
        """As `commit`, of a packed task. Ray takes bytes as they are; over objects its own pickler takes its time."""
        return pickle.dumps(self.commit(pickle.loads(task)), protocol=5)  # noqa: S301 - the run's own driver pickled it

    def _commit(self, task: ShardTask, watch: ShardWatch) -> Receipt:
        spec, shard_id = task.of.spec, task.plan.shard_id
        if task.source is not None:
            redo = repair_conversion if task.repair else convert_shard
            with watch.stage("converting"):
                return redo(task.source, spec=spec, shard_id=shard_id, store=self._store)
        assert max(spec.features.blocks, default=1) <= self._last_block, (
            "the worker was set up for fewer blocks"
        )
        with self._loading:
            networks = self._networks
        plan = task.plan.unpack()
        places = {"data": self._data(task.of.data), "store": self._store}
        how: dict[str, Any] = {"spec": spec, "watch": watch, "decoders": self._setup.decoders, **places}
        if task.repair:
            return repair_shard(plan, networks=networks, **how)
        return commit_shard(plan, ldm=networks, **how)

    def state(self) -> WorkerState:
        """What it is at."""
        return WorkerState(
            worker=f"{socket.gethostname()}:{os.getpid()}",
            shards=tuple(watch.state for watch in list(self._watches)),
        )

    @property
    def _last_block(self) -> int:
        return max(self._setup.features.blocks, default=1)

    @cached_property
    def _networks(self) -> Networks:
        features = self._setup.features
        folder = resolve_ldm(self._setup.ldm_source)
        if ldm_digest(folder) != self._setup.ldm_digest:
            raise UserError(
                f"the frozen LDM {self._setup.ldm_source} is not the same on every node: copy one folder to all"
            )
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            _same_rounding_every_time()
        ldm = FrozenLDM.from_pretrained(
            folder,
            device="cuda" if on_gpu else "cpu",
            dtype=TORCH_DTYPES[features.compute_dtype],
            last_block=self._last_block,
            channels_last=features.channels_last,
            compiled=features.compile,
        )
        return Networks(ldm, threads=features.threads)

    def _data(self, config: DataConfig) -> ObjectStore:
        root = open_store(config.root, sharing=self._setup.workers)
        return open_dataset(config, store=root).store

    @cached_property
    def _store(self) -> ObjectStore:
        return open_store(self._setup.cache_url, sharing=self._setup.workers)

    @cached_property
    def _metrics(self) -> PrecomputeMetrics:
        return PrecomputeMetrics()


def _same_rounding_every_time() -> None:
    """On a GPU: kernels are not chosen by measuring, and fp32 is fp32."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
