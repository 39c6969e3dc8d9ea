"""The shards of a precompute, computed by Ray actors, and what MLflow is told of them."""

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.job_notes import note_on_job
from jobs.local_ray import ray_session, settle_ray
from jobs.progress import show_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.cache.committed_shard import CommittedShard
    from pipeline.object_store.store import ObjectStore
    from pipeline.precompute.increment import PlannedWork
    from pipeline.precompute.progress import Progress, Snapshot
    from pipeline.precompute.sets import ListedSet, SetPlan, SetResult, ShardName
    from pipeline.recipe import Recipe
    from pipeline.tracking.tracker import Tracker

logger = logging.getLogger("jobs.precompute")


def compute_sets(
    recipe: "Recipe",
    plans: "Sequence[SetPlan]",
    store: "ObjectStore",
    *,
    before_manifest: "Callable[[], None]",
) -> None:
    """Commit what plans lack, write their manifests, tell MLflow."""
    from pipeline.precompute.sets import announce_specs, finish_set, missing_work
    from pipeline.tracking.tracker import Tracker

    work = {one.name: (plan, one) for plan in plans for one in missing_work(plan, store=store)}
    announce_specs(plans, store=store)
    for plan in plans:
        if kept := len(plan.increment.kept):
            logger.info("%s: taking over %d shards that the cache holds", plan.set_name, kept)
    with Tracker(
        recipe.tracking.named(f"{recipe.name}-precompute"), folder=Path(recipe.output_folder)
    ) as tracker:
        tracker.start(job="precompute", recipe=recipe)
        note_on_job({"mlflow_run.precompute": tracker.run_url})
        started = time.perf_counter()
        computed = run_work(recipe, list(work.values()), tracker=tracker)
        seconds = time.perf_counter() - started
        tracker.log_metrics({"shards_computed": float(len(work)), "seconds": seconds}, step=0)
        for plan in plans:
            before_manifest()
            result = finish_set(recipe, plan, store=store, computed=computed, run_id=tracker.run_id)
            _record(tracker, result)
            note_on_job({f"cache_key.{result.set_name}": result.manifest.cache_key})


def run_work(
    recipe: "Recipe",
    work: "Sequence[tuple[ListedSet, PlannedWork]]",
    *,
    repair: bool = False,
    tracker: "Tracker | None" = None,
) -> "dict[ShardName, CommittedShard]":
    """Have shards committed by Ray actors; what was committed, by name.

    Raises:
        UserError: what a worker found to be the user's mistake, or more faulty samples than the recipe allows.
    """
    settle_ray()
    from pipeline.precompute.bookkeeping import collect, tasks_of
    from pipeline.precompute.progress import Progress
    from pipeline.precompute.worker_pool import WorkerSetup, run_shards

    if not work:
        return {}
    config = recipe.cache
    # A repair computes shards of larger specifications, too, of which the recipe takes some blocks.
    blocks = {*recipe.features.blocks, *(block for _, one in work for block in one.spec.features.blocks)}
    setup = WorkerSetup(
        ldm_source=recipe.ldm.source,
        ldm_digest=work[0][0].spec.ldm_digest,
        features=recipe.features.model_copy(update={"blocks": tuple(sorted(blocks))}),
        cache_url=config.url,
        workers=config.max_workers,
    )
    members = sum(len(one.shard.rows) for _, one in work)
    logger.info(
        "computing %d samples in %d shards with up to %d workers", members, len(work), config.max_workers
    )
    progress = Progress(shards=len(work), members=members)
    # On a Ray of our own a range follows the machine.
    slots = config.workers if isinstance(config.workers, int) else config.min_workers
    with ray_session(cpus=slots * config.cpus_per_worker), show_progress("precompute", progress):
        committed = run_shards(
            tasks_of(work, repair=repair), shards=len(work), setup=setup, config=config, progress=progress
        )
        computed = collect(recipe, (listed for listed, _ in work), committed)
    _summarise(progress, tracker)
    return computed


def _summarise(progress: "Progress", tracker: "Tracker | None") -> None:
    done: Snapshot = progress.snapshot()
    logger.info("%s", done)
    if tracker is not None:
        seconds = max(done.seconds, 1e-9)
        figures = {
            "samples_per_s": done.members / seconds,
            "bytes_per_s": done.bytes_written / seconds,
            "bytes_written": float(done.bytes_written),
        }
        tracker.log_metrics(figures, step=0)


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
