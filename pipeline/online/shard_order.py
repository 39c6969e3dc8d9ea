"""The order that a cache's shards give a set's samples: of a cache that is there, or of one that would be."""

import hashlib
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.index import key_bytes
from pipeline.cache.manifest import Manifest, read_index
from pipeline.cache.member_table import MemberTable
from pipeline.cache.plan import plan_shards
from pipeline.object_store.store import ObjectStore


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardOrder:
    """Member keys shard by shard, as a manifest lists them. A shard's members are of one draw."""

    keys: NDArray[np.uint64]  # N,2
    sizes: NDArray[np.int64]  # S members of each shard
    draws: NDArray[np.int64]  # S

    @classmethod
    def of_manifest(cls, store: ObjectStore, manifest: Manifest) -> Self:
        """Of the samples that the cache holds; what it left out is not among them."""
        return cls(
            keys=key_bytes(read_index(store, manifest)),
            sizes=np.array([shard.samples for shard in manifest.shards], np.int64),
            draws=np.array([shard.draw for shard in manifest.shards], np.int64),
        )

    @classmethod
    def of_plan(
        cls, table: MemberTable, *, spec_key: str, samples_per_shard: int, together: bool = False
    ) -> Self:
        """Of the shards that a precompute into an empty cache would make. Nothing is computed."""
        shards = plan_shards(table, spec_key=spec_key, samples_per_shard=samples_per_shard, together=together)
        ordered = sorted(shards, key=lambda shard: shard.shard_id)  # as a manifest's object keys go
        return cls(
            keys=table.keys[np.concatenate([shard.rows for shard in ordered])],
            sizes=np.array([len(shard.rows) for shard in ordered], np.int64),
            draws=np.array([shard.draw for shard in ordered], np.int64),
        )

    @property
    def digest(self) -> str:
        """Names the order: two trainings see the same samples in the same order only if theirs are equal."""
        hasher = hashlib.sha256(self.keys.astype(">u8").tobytes())
        hasher.update(np.stack([self.sizes, self.draws]).astype(">i8").tobytes())
        return hasher.hexdigest()[:12]

    @property
    def first_draw(self) -> Self:
        """Of draw 0 alone."""
        chosen = self.draws == 0
        return type(self)(
            keys=self.keys[np.repeat(chosen, self.sizes)], sizes=self.sizes[chosen], draws=self.draws[chosen]
        )
