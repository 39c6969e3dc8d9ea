"""`precompute --repair`: what is broken of a set, as work to do again, and manifests renewed afterwards."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ldznet.errors import UserError
from pipeline.cache import layout
from pipeline.cache.committed_shard import CommittedShard
from pipeline.cache.inventory import read_spec
from pipeline.cache.manifest import (
    Manifest,
    committed_shards,
    find_answer,
    find_manifest,
    list_manifests,
    list_specs,
)
from pipeline.cache.member_table import key_numbers
from pipeline.cache.mending import renew_manifest
from pipeline.cache.plan import PlannedShard, shard_id
from pipeline.cache.relation import relate
from pipeline.cache.sealed import DamagedDocumentError
from pipeline.cache.spec import CacheSpec
from pipeline.cache.verification import verify_manifest
from pipeline.object_store.store import ObjectStore
from pipeline.precompute.increment import PlannedWork
from pipeline.precompute.sets import ListedSet
from pipeline.precompute.shard_repair import BrokenShard, member_keys, repair_needs, restore_receipts
from pipeline.recipe import Recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokenWork:
    """A shard to compute again, and the object that a manifest names for it now."""

    work: PlannedWork
    object_key: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SetRepair:
    """What is left to do for a set whose cache was verified."""

    broken: tuple[BrokenWork, ...] = ()
    stale: Manifest | None = None  # not as its shards' receipts are, to be renewed when they are mended


def find_broken(recipe: Recipe, listed: ListedSet, *, store: ObjectStore) -> SetRepair:
    """Verify every byte of a set's standing cache, mend what needs no computation, and return what does.

    Raises:
        UserError: a shard cannot be computed again, since the data set does not hold its samples any more.
    """
    manifest = _readable_manifest(recipe, listed, store=store)
    if manifest is None:
        return SetRepair()
    faults = list(verify_manifest(store, manifest))
    for fault in faults:
        logger.warning("%s: %s: %s", fault.object_key, fault.what, fault.detail)
    if any(fault.shard is None for fault in faults):  # an index tells the members of shards: it comes first
        manifest = renew_manifest(store, manifest)
        faults = list(verify_manifest(store, manifest))
    needs = repair_needs(store, manifest, faults)
    restore_receipts(store, needs.receipts)
    if not needs.any:
        logger.info("%s: all %d shards are sound", listed.set_name, len(manifest.shards))
    return SetRepair(
        broken=tuple(_work(listed, broken, store=store) for broken in needs.broken),
        stale=manifest if needs.manifest else None,
    )


def _readable_manifest(recipe: Recipe, listed: ListedSet, *, store: ObjectStore) -> Manifest | None:
    """The set's manifest. One that is damaged is given up: precompute writes it anew from receipts."""
    request = recipe.request_digest(listed.set_name)
    try:
        answer = find_answer(store, request)
    except DamagedDocumentError as error:
        logger.warning("%s", error)
        store.delete(layout.request_key(request))
        return None
    try:
        return find_manifest(store, request)
    except DamagedDocumentError as error:
        assert answer is not None, "a manifest was found through it"
        logger.warning("%s", error)
        store.delete(layout.request_key(request))
        store.delete(layout.manifest_key(answer.cache_key, answer.manifest_id))
        return None


def _work(listed: ListedSet, broken: BrokenShard, *, store: ObjectStore) -> BrokenWork:
    reference = broken.reference
    spec = read_spec(store, reference.cache_key)
    rows = listed.table.rows_with(key_numbers(broken.member_keys))
    members_there = not (rows < 0).any()
    if spec is None or not members_there or shard_id(spec.key, listed.table.keys[rows]) != reference.shard_id:
        raise UserError(
            f"{reference.object_key} cannot be computed again from the set {listed.set_name!r}: its samples are not "
            f"all there any more; `ldznet cache collect --drop {reference.cache_key[:12]}` gives the cache up"
        )
    planned = PlannedShard(shard_id=reference.shard_id, rows=rows, draw=reference.draw)
    source = _source(store, spec, broken) if spec.features.stored_from else None
    work = PlannedWork(spec=spec, shard=planned, source=source)
    return BrokenWork(work=work, object_key=reference.object_key)


def _source(store: ObjectStore, spec: CacheSpec, broken: BrokenShard) -> CommittedShard:
    """The shard that a broken one was converted from: of the same members, in the stored type of its specification."""
    for have in list_specs(store):
        relation = relate(spec, have)
        if relation is None or not relation.convert or relation.missing_blocks:
            continue
        for manifest in list_manifests(store, have.key):
            for shard in committed_shards(store, manifest):
                if member_keys(shard) == broken.member_keys:
                    return shard
    raise UserError(
        f"shard {broken.reference.shard_id} was converted from one in {spec.features.stored_from} that is not there "
        f"any more: `ldznet cache collect --drop {spec.key[:12]}` gives this cache up"
    )


def renew_manifests(store: ObjectStore, *, replaced: Iterable[str], stale: Iterable[Manifest]) -> None:
    """Renew every manifest that names an object which a repair has replaced by another, and those known to be stale."""
    gone, known = set(replaced), {manifest.manifest_id for manifest in stale}
    if not gone | known:
        return
    for manifest in list(_all_manifests(store)):
        if manifest.manifest_id in known or gone & set(manifest.object_keys):
            renew_manifest(store, manifest)
            logger.info("manifest %s is renewed", manifest.manifest_id)


def _all_manifests(store: ObjectStore) -> Iterator[Manifest]:
    for spec in list_specs(store):
        yield from list_manifests(store, spec.key)
