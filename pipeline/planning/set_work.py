"""A set and what of it is missing from the cache."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.cache.spec import CacheSpec
from pipeline.object_store.store import ObjectStore
from pipeline.planning.workload import Workload, count_work
from pipeline.precompute.increment import PlannedWork
from pipeline.precompute.sets import SetPlan, missing_work, standing_manifest
from pipeline.recipe import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class SetWork:
    """A set's plan, the shards that it lacks, and what they take."""

    plan: SetPlan
    missing: Sequence[PlannedWork]
    loads: Sequence[Workload]  # of the missing shards, by specification
    standing: bool  # its manifest is there: nothing is to be written

    @property
    def specs(self) -> tuple[CacheSpec, ...]:
        """The set's own specification, and those of further work."""
        specs = (self.plan.spec, *(load.spec for load in self.loads))
        return tuple({spec.key: spec for spec in specs}.values())

    @property
    def committed(self) -> tuple[PlannedWork, ...]:
        """Work that has a receipt already, in no manifest: of a run that was interrupted, or of an earlier set."""
        names = {one.name for one in self.missing}
        return tuple(one for one in self.plan.increment.work if one.name not in names)


def set_work(recipe: Recipe, plan: SetPlan, *, store: ObjectStore, planned: set[tuple[str, str]]) -> SetWork:
    """What of a set is missing.

    Args:
        recipe: the resolved recipe.
        plan: of the set.
        store: the cache.
        planned: names of the work of earlier sets, which is done once; this set's is added.

    Raises:
        UserError: more samples are known to be faulty than the recipe allows.
    """
    standing = standing_manifest(recipe, plan, store=store) is not None
    missing = [one for one in missing_work(plan, store=store) if one.name not in planned]
    planned |= {one.name for one in missing}
    return SetWork(plan=plan, missing=missing, loads=count_work(plan, missing), standing=standing)
