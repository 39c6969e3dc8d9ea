"""Frozen features of every set of a recipe, into shards on the object store; what is there is not computed again."""

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.entry import recipe_job
from jobs.local_ray import ray_session
from jobs.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.cache.receipt import Receipt
    from pipeline.object_store.store import ObjectStore
    from pipeline.precompute import SetPlan, SetResult
    from pipeline.recipe import Recipe
    from pipeline.shard_workers import ShardTask
    from pipeline.tracking import Tracker

logger = logging.getLogger("jobs.precompute")


def precompute(recipe: "Recipe") -> None:
    """Plan all sets, reuse those that are there, have the rest computed."""
    from pipeline.object_store.opening import open_store
    from pipeline.precompute import plan_sets, standing_manifest

    store = open_store(recipe.cache.url)
    to_do = []
    for plan in plan_sets(recipe):
        manifest = standing_manifest(recipe, plan, store=store)
        if manifest is None:
            to_do.append(plan)
            continue
        where = f"{store.url}/{manifest.cache_key[:12]}…"
        logger.info(
            "%s: reusing cache %s with %d samples, nothing to compute", plan.set_name, where, manifest.samples
        )
    if to_do:
        _compute(recipe, to_do, store)


def _compute(recipe: "Recipe", plans: "Sequence[SetPlan]", store: "ObjectStore") -> None:
    from pipeline.precompute import finish_set, missing_shards
    from pipeline.shard_workers import ShardTask
    from pipeline.tracking import Tracker

    tasks = [
        ShardTask(set_name=plan.set_name, spec=plan.spec, data=plan.data, plan=shard)
        for plan in plans
        for shard in missing_shards(plan, store=store)
    ]
    with Tracker(
        recipe.tracking.named(f"{recipe.name}-precompute"), folder=Path(recipe.output_folder)
    ) as tracker:
        tracker.start(job="precompute", recipe=recipe)
        started = time.perf_counter()
        computed = _run(recipe, plans, tasks) if tasks else {}
        seconds = time.perf_counter() - started
        tracker.log_metrics({"shards_computed": float(len(tasks)), "seconds": seconds}, step=0)
        for plan in plans:
            result = finish_set(
                recipe, plan, store=store, computed=computed.get(plan.set_name, {}), run_id=tracker.run_id
            )
            _record(tracker, result)


def _run(
    recipe: "Recipe", plans: "Sequence[SetPlan]", tasks: "Sequence[ShardTask]"
) -> "dict[str, dict[str, Receipt]]":
    from pipeline.precompute import refuse_too_many_failures
    from pipeline.shard_workers import WorkerSetup, run_shards

    setup = WorkerSetup(
        ldm_source=recipe.ldm.source,
        ldm_digest=plans[0].spec.ldm_digest,
        features=recipe.features,
        cache_url=recipe.cache.url,
    )
    plan_of = {plan.set_name: plan for plan in plans}
    computed: dict[str, dict[str, Receipt]] = {name: {} for name in plan_of}
    total = sum(len(task.plan.members) for task in tasks)
    logger.info("computing %d samples in %d shards with %d workers", total, len(tasks), recipe.cache.workers)
    cpus = recipe.cache.workers * recipe.cache.cpus_per_worker
    with ray_session(cpus=cpus), progress_bar("precompute", total=total, unit="samples") as advance:
        for task, receipt in run_shards(tasks, setup=setup, config=recipe.cache):
            computed[task.set_name][receipt.shard_id] = receipt
            advance(len(task.plan.members))
            refuse_too_many_failures(recipe, plan_of[task.set_name], computed[task.set_name].values())
    return computed


def _record(tracker: "Tracker", result: "SetResult") -> None:
    manifest, name = result.manifest, result.set_name
    logger.info(
        "%s: %d samples in %d shards, %.1f MB, %d shards computed now; %d samples failed, %d filtered; cache %s…",
        name,
        manifest.samples,
        len(manifest.shards),
        manifest.size / 1e6,
        result.shards_computed,
        manifest.failed,
        manifest.filtered,
        manifest.cache_key[:12],
    )
    for member in result.left_out:
        if member.why == "failed":
            logger.warning("left out: %s, phrase %r: %s", member.image, member.phrase, member.reason)
    figures = {
        "samples": manifest.samples,
        "shards": len(manifest.shards),
        "bytes": manifest.size,
        "failed": manifest.failed,
        "filtered": manifest.filtered,
    }
    tracker.log_metrics({f"{name}/{key}": float(value) for key, value in figures.items()}, step=0)
    tracker.set_tags({f"cache_key.{name}": manifest.cache_key, f"manifest.{name}": manifest.manifest_id})
    if result.left_out:
        lines = [
            f"{member.why}\t{member.image}\t{member.phrase}\t{member.reason}\n" for member in result.left_out
        ]
        tracker.log_text("".join(lines), f"left_out/{name}.tsv")


main = recipe_job("precompute")(precompute)

if __name__ == "__main__":
    sys.exit(main())
