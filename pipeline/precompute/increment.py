"""What a request can take over from what the cache holds: only the difference is computed, nothing is copied.

Shards whose samples are all wanted are taken over whole: as they are, with columns of further blocks joined, or
converted to another stored type. Of what remains, fresh shards are cut.
"""

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.cache import layout
from pipeline.cache.committed_shard import CommittedShard
from pipeline.cache.index import key_bytes
from pipeline.cache.manifest import Manifest, committed_shards, list_manifests, list_specs
from pipeline.cache.member_table import MemberTable, key_numbers
from pipeline.cache.plan import PlannedShard, plan_shards, shard_id
from pipeline.cache.receipt import read_receipts
from pipeline.cache.relation import Relation, column_spec, relate, with_blocks
from pipeline.cache.spec import CacheSpec
from pipeline.object_store.store import ObjectStore

logger = logging.getLogger(__name__)

_AS_IT_IS = Relation(convert=False, shared_blocks=(), missing_blocks=())


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedWork:
    """A shard to commit: computed from the data, or converted from a shard in another stored type."""

    spec: CacheSpec
    shard: PlannedShard
    source: CommittedShard | None = None

    @property
    def name(self) -> tuple[str, str]:
        """Cache key and shard id: equal names, equal bytes."""
        return self.spec.key, self.shard.shard_id


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptShard:
    """A shard taken over, and what has to be made of it first."""

    source: CommittedShard
    conversion: PlannedWork | None = None
    column: PlannedWork | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Increment:
    """A request's shards: those taken over, and fresh ones for the rest."""

    kept: tuple[KeptShard, ...]
    fresh: tuple[PlannedWork, ...]

    @property
    def work(self) -> Iterator[PlannedWork]:
        """Everything to commit, whether an earlier run has committed it or not."""
        yield from self.fresh
        for shard in self.kept:
            yield from (work for work in (shard.conversion, shard.column) if work is not None)


def plan_increment(
    table: MemberTable,
    *,
    spec: CacheSpec,
    samples_per_shard: int,
    store: ObjectStore,
    elsewhere: Collection[tuple[str, str]] = (),
) -> Increment:
    """Take over what is there, and cut the rest into fresh shards.

    Args:
        table: the members.
        spec: their numeric specification.
        samples_per_shard: of fresh shards.
        store: the cache.
        elsewhere: names of work that is another set's, whose receipts need no look.
    """
    claims = _Claims(table, together=spec.policy.is_grid)
    kept: list[KeptShard] = []
    named: set[str] = set()
    for relation, manifest in _candidates(spec, store):
        for shard in committed_shards(store, manifest):
            if shard.reference.cache_key == spec.key:
                named.add(shard.reference.shard_id)
            rows = claims.take(shard)
            if rows is not None:
                kept.append(_kept(table, spec, relation, shard, rows))

    def cut() -> list[PlannedShard]:
        return list(
            plan_shards(
                table,
                spec_key=spec.key,
                samples_per_shard=samples_per_shard,
                rows=claims.unclaimed,
                together=spec.policy.is_grid,
            )
        )

    fresh = cut()
    named |= {number for cache_key, number in elsewhere if cache_key == spec.key}
    for shard in _unnamed(store, spec, fresh, named):
        rows = claims.take(shard)
        if rows is not None:
            kept.append(KeptShard(source=shard))
    if not claims.untouched_by(fresh):
        fresh = cut()
    return Increment(
        kept=tuple(kept), fresh=tuple(PlannedWork(spec=spec, shard=planned) for planned in fresh)
    )


class _Claims:
    """Which members have a shard already."""

    def __init__(self, table: MemberTable, *, together: bool) -> None:
        self._table = table
        self._together = together
        self._claimed = np.zeros(len(table), bool)

    @property
    def unclaimed(self) -> NDArray[np.int64]:
        return np.flatnonzero(~self._claimed)

    def take(self, shard: CommittedShard) -> NDArray[np.int64] | None:
        """Claim a shard's members, in key order; None where a sample of it is not wanted, or is there already.

        A shard is taken whole or not at all: a reader of the plain tars would meet what nobody asked for.
        """
        rows = self._table.rows_with(key_bytes(shard.rows))
        if (rows < 0).any() or self._claimed[rows].any():
            return None
        left_out = self._table.rows_with(key_numbers(member.key for member in shard.left_out))
        left_out = left_out[left_out >= 0]
        rows = np.sort(np.concatenate([rows, left_out[~self._claimed[left_out]]]))
        mixed = (self._table.draws[rows] != shard.reference.draw).any()
        if mixed and not self._together:  # of before a shard held one draw only
            return None
        self._claimed[rows] = True
        return rows if len(rows) else None

    def untouched_by(self, planned: list[PlannedShard]) -> bool:
        """Whether none of the planned shards' members have been claimed since."""
        return not any(self._claimed[shard.rows].any() for shard in planned)


def _candidates(spec: CacheSpec, store: ObjectStore) -> Iterator[tuple[Relation, Manifest]]:
    """Manifests of specifications that can serve: the least work first, then the largest."""
    related = [(relation, have) for have in list_specs(store) if (relation := relate(spec, have))]
    found = [
        (relation, manifest) for relation, have in related for manifest in list_manifests(store, have.key)
    ]
    yield from sorted(
        found,
        key=lambda pair: (pair[0].rank, pair[1].cache_key != spec.key, -pair[1].samples, pair[1].manifest_id),
    )


def _kept(
    table: MemberTable, spec: CacheSpec, relation: Relation, shard: CommittedShard, rows: NDArray[np.int64]
) -> KeptShard:
    def work(of: CacheSpec, source: CommittedShard | None = None) -> PlannedWork:
        planned = PlannedShard(
            shard_id=shard_id(of.key, table.keys[rows]), rows=rows, draw=shard.reference.draw
        )
        return PlannedWork(spec=of, shard=planned, source=source)

    missing = relation.missing_blocks
    return KeptShard(
        source=shard,
        conversion=work(with_blocks(spec, relation.shared_blocks), shard) if relation.convert else None,
        column=work(column_spec(spec, missing)) if missing and len(shard.rows) else None,
    )


def _unnamed(
    store: ObjectStore, spec: CacheSpec, fresh: list[PlannedShard], named: set[str]
) -> Iterator[CommittedShard]:
    """Shards that an interrupted run committed for members that the data set lists otherwise by now.

    Only where there is work, and only those that are neither planned, here or for another set, nor named by a manifest:
    a plain resume over many finished shards lists receipts, page by page, and reads none.
    """
    committed = committed_ids(store, spec)
    planned = {shard.shard_id for shard in fresh}
    if planned <= committed:
        return
    loose = sorted(committed - planned - named)
    for receipt in read_receipts(store, cache_key=spec.key, shard_ids=loose):
        if receipt is not None:
            yield CommittedShard.from_receipts(receipt)


def committed_ids(store: ObjectStore, spec: CacheSpec) -> set[str]:
    """Ids of the shards of a specification that have a receipt, from a listing alone."""
    prefix = layout.receipt_prefix(spec.key)
    return {info.key.removeprefix(prefix).removesuffix(".json") for info in store.list(prefix)}
