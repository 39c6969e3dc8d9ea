"""Frozen features of every set of a recipe, into shards on the object store; what is there is not computed again."""

import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from jobs.entry import recipe_job
from jobs.job_notes import note_on_job

if TYPE_CHECKING:
    from pipeline.object_store.store import ObjectStore
    from pipeline.precompute.sets import ListedSet
    from pipeline.recipe import Recipe

logger = logging.getLogger("jobs.precompute")


def precompute(recipe: "Recipe", *, repair: bool = False) -> None:
    """Plan all sets, reuse what is there, have the rest computed."""
    from pipeline.cache.lease import lease
    from pipeline.object_store.opening import open_store
    from pipeline.precompute.sets import list_sets

    store = open_store(recipe.cache.url)
    with ExitStack() as stack:
        listed = []
        for one in list_sets(recipe):
            stack.enter_context(one.table)
            listed.append(one)
        # Held from before the first look at the cache until the last manifest is written.
        held = stack.enter_context(lease(store, [one.spec for one in listed]))
        if repair:
            _repair(recipe, listed, store)
        _precompute(recipe, listed, store, before_manifest=held.ensure)


def _repair(recipe: "Recipe", listed: "Sequence[ListedSet]", store: "ObjectStore") -> None:
    from jobs.precompute_shards import run_work
    from pipeline.precompute.repair import find_broken, renew_manifests

    repairs = [(one, find_broken(recipe, one, store=store)) for one in listed]
    broken = {found.work.name: (one, found) for one, repair in repairs for found in repair.broken}
    shards = run_work(recipe, [(one, found.work) for one, found in broken.values()], repair=True)
    replaced = [
        found.object_key
        for name, (_, found) in broken.items()
        if shards[name].reference.object_key != found.object_key
    ]
    renew_manifests(store, replaced=replaced, stale=[one.stale for _, one in repairs if one.stale])


def _precompute(
    recipe: "Recipe",
    listed: "Sequence[ListedSet]",
    store: "ObjectStore",
    *,
    before_manifest: Callable[[], None],
) -> None:
    from jobs.precompute_shards import compute_sets
    from pipeline.precompute.sets import plan_listed, standing_manifest

    to_do = []
    for plan in plan_listed(recipe, listed, store=store):
        manifest = standing_manifest(recipe, plan, store=store)
        if manifest is None:
            to_do.append(plan)
            continue
        note_on_job({f"cache_key.{plan.set_name}": manifest.cache_key})
        where = f"{store.url}/{manifest.cache_key[:12]}…"
        logger.info(
            "%s: reusing cache %s with %d samples, nothing to compute", plan.set_name, where, manifest.samples
        )
    if to_do:
        compute_sets(recipe, to_do, store, before_manifest=before_manifest)


_REPAIR = "verify every byte of the recipe's caches first, and compute damaged and lost shards again"

main = recipe_job("precompute", flags={"repair": _REPAIR})(precompute)

if __name__ == "__main__":
    sys.exit(main())
