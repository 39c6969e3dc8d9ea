"""A whole precompute in this process: the real plan, shards and manifest, without Ray."""

from pathlib import Path

from ldznet.frozen_ldm import FrozenLDM
from ldznet.ldm_folder import resolve_ldm
from pipeline.cache.committed_shard import CommittedShard
from pipeline.cache.manifest import Manifest
from pipeline.datasets.opening import open_dataset
from pipeline.object_store.store import ObjectStore
from pipeline.precompute.commit import commit_shard
from pipeline.precompute.sets import finish_set, missing_work, plan_sets
from pipeline.recipe_file import load_recipe


def precompute(recipe_path: Path, store: ObjectStore, *overrides: str) -> list[Manifest]:
    """Every set of the recipe into `store`, shard by shard."""
    recipe = load_recipe(recipe_path, [f"cache.url={store.url}", *overrides])
    ldm = FrozenLDM.from_pretrained(
        resolve_ldm(recipe.ldm.source), last_block=max(recipe.features.blocks, default=1)
    )
    manifests = []
    for plan in plan_sets(recipe, store=store):
        with plan.table:
            data = open_dataset(plan.data).store
            computed = {
                work.name: CommittedShard.from_receipts(
                    commit_shard(work.shard.plan(plan.table), spec=work.spec, ldm=ldm, data=data, store=store)
                )
                for work in missing_work(plan, store=store)
            }
            manifests.append(finish_set(recipe, plan, store=store, computed=computed).manifest)
    return manifests
