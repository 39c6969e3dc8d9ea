"""The samples of a set with their photos: what an online source computes from, listed without decoding anything."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ldznet.errors import UserError
from ldznet.frozen_ldm import FrozenLDM
from ldznet.ldm_folder import resolve_ldm
from pipeline.cache.member import Member, member_key
from pipeline.cache.member_table import MemberTable
from pipeline.cache.spec import CacheSpec
from pipeline.datasets.opening import open_dataset
from pipeline.datasets.sample import ReadObject, bounded_reader
from pipeline.object_store.store import ObjectStore
from pipeline.online.shard_order import ShardOrder
from pipeline.precompute.sets import list_set, samples_per_shard
from pipeline.recipe import Recipe
from pipeline.training.cached_sets import CachedSets


@dataclass(frozen=True, kw_only=True, slots=True)
class OnlineSamples:
    """A set's members in the order of its shards, and where their photos and masks are read. Close it at the end."""

    set_name: str
    spec: CacheSpec
    order: ShardOrder
    fresh: bool  # draws without end: an epoch's number is its draw's
    read: ReadObject
    table: MemberTable
    rows: NDArray[np.int64]  # of the table, for each position of the order

    @classmethod
    def listed(
        cls,
        recipe: Recipe,
        set_name: str,
        *,
        store: ObjectStore,
        cached: CachedSets,
        ldm_digest: str,
        fresh: bool,
    ) -> Self:
        """List a set. The order is that of its cache, where there is one, else that which its cache would have.

        Args:
            recipe: the resolved recipe.
            set_name: which of its sets.
            store: the cache, which may be empty.
            cached: what of it counts.
            ldm_digest: of the frozen LDM.
            fresh: draws without end, in the order of draw 0; else the set's own draws.

        Raises:
            UserError: the set is empty, or the cache holds samples that the data set does not have any more.
        """
        shapes = FrozenLDM.from_pretrained(resolve_ldm(recipe.ldm.source), components=())
        asked = _with_one_draw(recipe, set_name) if fresh else recipe
        data = open_dataset(recipe.data_of(set_name))
        listed = list_set(asked, set_name, ldm_digest=ldm_digest, shapes=shapes, dataset=data)
        spec = recipe.cache_spec(set_name, ldm_digest=ldm_digest)
        manifest = cached.read(store, set_name)
        if manifest is not None:
            order = ShardOrder.of_manifest(store, manifest)
        else:
            order = ShardOrder.of_plan(
                listed.table,
                spec_key=spec.key,
                samples_per_shard=samples_per_shard(recipe, listed),
                together=spec.policy.is_grid,
            )
        if fresh:
            order = order.first_draw
        rows = listed.table.rows_with(order.keys)
        gone = int((rows < 0).sum())
        if gone:
            listed.table.close()
            raise UserError(
                f"{gone} of the {len(rows)} cached samples of the set {set_name!r} are not in the data set any more: "
                "run `ldznet precompute` again, or name another cache.url"
            )
        return cls(
            set_name=set_name,
            spec=spec,
            order=order,
            fresh=fresh,
            read=bounded_reader(data.store),
            table=listed.table,
            rows=rows,
        )

    def members(self, positions: NDArray[np.int64], *, epoch: int) -> Sequence[Member]:
        """The members at these positions of the order, in the draw that the epoch sees."""
        members = self.table.members(self.rows[positions])
        if not self.fresh:
            return members
        return [replace(one, key=member_key(one.sample_id, epoch), draw=epoch) for one in members]

    def close(self) -> None:
        """Let go of the list."""
        self.table.close()


def _with_one_draw(recipe: Recipe, set_name: str) -> Recipe:
    one = recipe.set_named(set_name).model_copy(update={"draws": 1})
    return recipe.model_copy(update={"sets": {**recipe.sets, set_name: one}})
