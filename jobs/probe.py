"""Probe the frozen LDM: how much of a mask small decoders read from each block at each timestep (paper, figure 4)."""

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.entry import recipe_job
from jobs.local_ray import ray_session, settle_ray
from ldznet.errors import FinalError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.object_store.store import ObjectStore
    from pipeline.probing.cell import CellRows, CellScore, ProbedCache
    from pipeline.recipe import Recipe

logger = logging.getLogger("jobs.probe")


def probe(recipe: "Recipe") -> Path:
    """Train and score what is missing, write `probe.csv` and `probe.png`, tell MLflow. Returns their folder."""
    from pipeline.cache.lease import reading_lease
    from pipeline.object_store.opening import open_store
    from pipeline.probing.grid import probed_blocks, probed_cache

    store = open_store(recipe.cache.url)
    blocks = probed_blocks(recipe)
    with reading_lease(store, [manifest.spec for manifest in probed_cache(recipe, store).manifests]):
        return _probe(recipe, store, blocks)


def _probe(recipe: "Recipe", store: "ObjectStore", blocks: tuple[int, ...]) -> Path:
    from pipeline.probing.figure import best_cell, write_csv, write_heat_map
    from pipeline.probing.grid import cells_of, probed_cache
    from pipeline.tracking.tracker import Tracker

    cache = probed_cache(recipe, store)
    folder = Path(recipe.output_folder) / "probe" / _identity(recipe, cache, blocks)
    folder.mkdir(parents=True, exist_ok=True)
    with Tracker(recipe.tracking.named(f"{recipe.name}-probe"), folder=Path(recipe.output_folder)) as tracker:
        tracker.start(job="probe", recipe=recipe)
        cells: list[CellScore] = []
        for scored in _scored(recipe, cache, cells_of(recipe, store, cache), blocks, folder=folder):
            cells += scored
            step = scored[0].timestep
            metrics = {f"ap/block_{cell.block:02d}": cell.ap.value for cell in scored}
            for cell in scored:
                if cell.control is not None:
                    metrics[f"control_ap/block_{cell.block:02d}"] = cell.control.value
            tracker.log_metrics(metrics, step=step)
            best = best_cell(scored)
            logger.info("t = %d: best block %d, AP %s", step, best.block, best.ap)
        write_csv(folder / "probe.csv", cells)
        title = f"AP of a small decoder on {cells[0].phrases} phrases of {recipe.probe.score_on}"
        write_heat_map(folder / "probe.png", cells, title=title)
        for name in ("probe.csv", "probe.png"):
            tracker.log_artifact(folder / name, folder="probe")
    best = best_cell(cells)
    logger.info("best: block %d at t = %d, AP %s -> %s", best.block, best.timestep, best.ap, folder)
    return folder


def _identity(recipe: "Recipe", cache: "ProbedCache", blocks: "Sequence[int]") -> str:
    """Names a probe by what it computes, so that a second run takes up what the first one left."""
    import hashlib

    from pipeline.cache.spec import canonical_json

    asked = [
        [manifest.manifest_id for manifest in cache.manifests],
        list(blocks),
        recipe.probe.model_dump(mode="json"),
    ]
    return hashlib.sha256(canonical_json(asked).encode()).hexdigest()[:12]


def _scored(
    recipe: "Recipe",
    cache: "ProbedCache",
    rows: "Sequence[CellRows]",
    blocks: tuple[int, ...],
    *,
    folder: Path,
) -> "Iterator[list[CellScore]]":
    """Every timestep's scores: from the folder where they are, else by a Ray task each, as they are done."""
    from pipeline.probing.cell import CellScore, cell_file

    missing = []
    for one in rows:
        path = cell_file(folder, timestep=one.timestep)
        if path.is_file():
            yield [CellScore.model_validate(cell) for cell in json.loads(path.read_bytes())]
        else:
            missing.append(one)
    if not missing:
        return
    settle_ray()
    import ray

    from pipeline.probing.cell import probe_timestep

    with ray_session(cpus=max(2, recipe.probe.threads)):
        task = ray.remote(num_cpus=recipe.probe.threads, max_retries=3)(probe_timestep)
        waiting: dict[Any, CellRows] = {
            task.remote(cache, one, blocks=blocks, config=recipe.probe): one for one in missing
        }
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1)
            one = waiting.pop(done[0])
            cells = _result(done[0])
            path = cell_file(folder, timestep=one.timestep)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps([cell.model_dump(mode="json") for cell in cells], indent=1) + "\n")
            partial.replace(path)
            yield cells


def _result(reference: Any) -> "list[CellScore]":
    import ray
    from ray.exceptions import RayTaskError

    try:
        cells: list[CellScore] = ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, UserError | FinalError):
            raise error.cause from None  # a line, without the task's traceback
        raise
    return cells


main = recipe_job("probe")(probe)

if __name__ == "__main__":
    sys.exit(main())
