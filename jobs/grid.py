"""A grid of trainings: side by side on Ray as there is room, nested in MLflow under one run, compared in one table."""

import argparse
import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jobs.cache_notes import cache_keys
from jobs.entry import RecipeJob, configure_logging, dry_run_text
from jobs.evaluation_task import evaluate_where_it_is_quick
from jobs.job_notes import note_on_job
from jobs.local_ray import ray_session
from ldznet.errors import FinalError, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.experiments.cell import Cell, Choices, Experiment
    from pipeline.experiments.comparison import Comparison
    from pipeline.experiments.run import GridRun
    from pipeline.recipe import Recipe
    from pipeline.training.cached_sets import CachedSets
    from pipeline.training.config import TrainConfig

logger = logging.getLogger("jobs.train")

_LOOK_AGAIN_S: Final = 5.0  # whether the cluster has grown
_STOP_S: Final = 20.0  # what trainings get to end by themselves after Ctrl-C
_PATIENT_MINUTES: Final = 7 * 24 * 60.0  # of a training that waits for others of its grid


class TrainCommand(RecipeJob):
    """`train RECIPE [a.b=c ...]`, where an override may name alternatives: then a grid."""

    def recipes(self, path: "Path", overrides: "Sequence[str]") -> "tuple[Recipe, ...]":
        """Those of the grid's cells."""
        from pipeline.experiments.cell import load_experiment

        return tuple(cell.recipe for cell in load_experiment(path, overrides).cells)

    def _act(self, arguments: argparse.Namespace) -> None:
        from pipeline.experiments.cell import load_experiment

        experiment = load_experiment(arguments.recipe, arguments.overrides)
        if arguments.dry_run:
            print(dry_run_text(self.name, self.summary, experiment.recipe))  # noqa: T201 - the command's result
            print("".join(f"{line}\n" for line in _cell_lines(experiment)), end="")  # noqa: T201 - likewise
        elif experiment.is_grid:
            run_grid(experiment, test=arguments.test)
        elif arguments.test:
            raise UserError(
                "--test goes with a grid, such as seed=1,2: after one training, `ldznet evaluate`"
            )
        else:
            self.job(experiment.recipe)


def run_grid(experiment: "Experiment", *, test: bool = False) -> "Comparison":
    """Train what is not finished, print the comparison, write it to the output folder and MLflow.

    Args:
        experiment: the grid.
        test: score each model on the recipe's other sets too.

    Raises:
        SystemExit: trainings failed; the others are finished and compared. With one line that names them.
    """
    from pipeline.experiments.comparison import compare
    from pipeline.experiments.comparison_table import terminal_table
    from pipeline.experiments.run import GridRun

    grid = GridRun(experiment)
    grid.check(test=test)
    with grid.cache_held(), grid.recorded() as tracker:
        recipe = experiment.recipe
        keys = cache_keys(recipe, [recipe.train_on, recipe.validate_on])
        note_on_job({"mlflow_run.grid": tracker.run_url, **keys})
        missing = [cell for cell in experiment.cells if grid.training(cell).finished() is None]
        found = [cell for cell in experiment.cells if cell not in missing]
        logger.info(
            "%s: %d trainings, %d of them finished before", grid.name, len(experiment.cells), len(found)
        )
        for cell in found:
            grid.adopt(cell, tracker)
        failures = _train_cells(missing, grid=grid, parent_run_id=tracker.known_run_id) if missing else {}
        score = evaluate_where_it_is_quick if test else None
        comparison = compare(experiment, grid.results(failures, score=score))
        grid.report(comparison, tracker)
        if failures:
            tracker.finish("FAILED")
    print(terminal_table(comparison))  # noqa: T201 - the command's result
    logger.info("comparison: %s", grid.folder / "comparison.html")
    if failures:
        titles = ", ".join(one.cell.title for one in comparison.failed)
        raise SystemExit(
            f"ldznet: {len(failures)} of {len(experiment.cells)} trainings failed ({titles}): the same command trains "
            "what is missing"
        )
    return comparison


def _train_cells(
    cells: "Sequence[Cell]", *, grid: "GridRun", parent_run_id: str | None
) -> "dict[Choices, str]":
    """Train cells as Ray tasks that start the usual ranks. Returns why those that failed did.

    No task holds resources: a training's ranks are placed all at once or not at all (one placement group), so two
    trainings never wait for each other's halves. Handed to Ray are as many as its nodes hold, and on a cluster that
    outlives us one more, whose waiting ranks tell an autoscaler what is wanted.
    """
    import ray

    cpus = max(cell.recipe.train.max_workers * cell.recipe.train.threads for cell in cells) + 1
    failures: dict[Choices, str] = {}
    with ray_session(cpus=cpus):
        task = ray.remote(num_cpus=0, max_retries=1)(_train_cell)
        waiting, running = list(reversed(cells)), dict[Any, "Cell"]()
        try:
            while waiting or running:
                while waiting and len(running) < _at_once(waiting[-1].recipe.train):
                    cell = waiting.pop()
                    cached = grid.training(cell).cached
                    started = _start(task, cell, parent_run_id, cached=cached, patient=bool(running))
                    running[started] = cell
                done, _ = ray.wait(list(running), timeout=_LOOK_AGAIN_S)
                for reference in done:
                    cell = running.pop(reference)
                    told = _outcome(reference, cell)
                    failures |= {} if told is None else {cell.choices: told}
                    left = len(waiting) + len(running)
                    logger.info("%s: %s, %d left", cell.title, "failed" if told else "finished", left)
        finally:
            _stop(list(running))
    return failures


def _start(task: Any, cell: "Cell", parent_run_id: str | None, *, cached: "CachedSets", patient: bool) -> Any:
    """Hand a cell to Ray, on this node: the output folder is here."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
    logger.info("%s: starting", cell.title)
    return task.options(name=f"train {cell.title}", scheduling_strategy=here).remote(
        (cell.recipe.model_dump(mode="json"), cell.label, cell.title),
        cached=cached.model_dump(mode="json"),
        parent_run_id=parent_run_id,
        patient=patient and _fits(cell.recipe.train) > 0,
        folder=str(Path.cwd()),
    )


def _train_cell(
    cell: tuple[dict[str, Any], str, str],
    *,
    cached: dict[str, Any],
    parent_run_id: str | None,
    patient: bool,
    folder: str,
) -> None:
    """In a process of Ray's: one training, as the command does it. `patient`: it waits for others of its grid."""
    from jobs.train import PlaceInGrid, train
    from pipeline.recipe import Recipe
    from pipeline.training.cached_sets import CachedSets

    content, label, title = cell
    configure_logging()
    wait_minutes = _PATIENT_MINUTES if patient else None
    place = PlaceInGrid(
        label=label,
        title=title,
        parent_run_id=parent_run_id,
        wait_minutes=wait_minutes,
        cached=CachedSets.model_validate(cached),
    )
    with contextlib.chdir(folder):
        train(Recipe.model_validate(content), place=place)


def _outcome(reference: Any, cell: "Cell") -> str | None:
    """None where the training came to its end, else why not, in a line; the whole story is logged."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        ray.get(reference)
    except RayTaskError as error:
        line = " ".join(str(error.cause).split())
        if isinstance(error.cause, UserError | FinalError):
            logger.error("%s: %s", cell.title, line)  # noqa: TRY400 - what a line tells needs no traceback
            return line
        logger.exception("%s failed", cell.title)
        return f"{type(error.cause).__name__}: {line}"
    except RayError as error:  # its process is lost
        logger.exception("%s failed", cell.title)
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def _at_once(train: "TrainConfig") -> int:
    """How many trainings Ray is handed at a time."""
    spare = 1 if os.environ.get("RAY_ADDRESS") else 0
    return max(1, _fits(train) + spare)


def _fits(train: "TrainConfig") -> int:
    """How many trainings of this size the nodes that are there now hold, if they did nothing else."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(has.get("GPU", 0)) for has in nodes)
    if train.cluster.device == "gpu" or (train.cluster.device == "auto" and gpus):
        return gpus // train.fitted_to_gpus(gpus).max_workers
    return sum(int(has.get("CPU", 0)) // train.threads for has in nodes) // train.max_workers


def _stop(references: list[Any]) -> None:
    """End trainings that are not to go on: as by Ctrl-C, then by force."""
    import ray

    if not references:
        return
    for reference in references:
        ray.cancel(reference, force=False)
    _, left = ray.wait(references, num_returns=len(references), timeout=_STOP_S)
    for reference in left:
        ray.cancel(reference, force=True)


def _cell_lines(experiment: "Experiment") -> list[str]:
    if not experiment.is_grid:
        return []
    from pipeline.experiments.run import GridRun

    grid = GridRun(experiment)
    width = max(len(cell.title) for cell in experiment.cells)
    lines = [f"grid       {grid.name}, {len(experiment.cells)} trainings over one cache:"]
    lines += [f"  {cell.title:<{width}}  {grid.training(cell).name}" for cell in experiment.cells]
    return lines
