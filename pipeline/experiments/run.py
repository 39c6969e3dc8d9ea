"""A grid as a whole, seen from its driver: its trainings, its places, and its record in MLflow."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from ldznet.errors import UserError
from pipeline.evaluation.run import Evaluation
from pipeline.experiments.cell import Cell, Choices, Experiment
from pipeline.experiments.comparison import (
    CellResult,
    Comparison,
    compare,
    test_figures,
    validation_figures,
)
from pipeline.experiments.comparison_page import render_page
from pipeline.experiments.comparison_table import cells_csv, markdown_table, rows_csv
from pipeline.models.registered import set_alias
from pipeline.object_store.opening import open_store
from pipeline.recipe import Recipe, SystemConfig
from pipeline.tracking.tracker import Tracker
from pipeline.training.cached_sets import required_manifest
from pipeline.training.run import BEST, RUN_RECORD, TrainingRun

_DESCRIPTION_TAG = "mlflow.note.content"  # what MLflow's page shows as the run's description

Score = Callable[[Recipe, Sequence[SystemConfig]], Evaluation]  # as `evaluate_models`, wherever it is quick


class GridRun:
    """Names, places and results of one grid. The same grid, with more values too, finds what it left."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.name = experiment.name
        self.folder = Path(experiment.recipe.output_folder) / "grids" / self.name
        self._trainings = {
            cell.choices: TrainingRun(cell.recipe, label=cell.label) for cell in experiment.cells
        }

    def training(self, cell: Cell) -> TrainingRun:
        """The training of one cell."""
        return self._trainings[cell.choices]

    def check(self, *, test: bool) -> None:
        """Look for the user's mistakes before anything starts.

        Raises:
            UserError: a set that the trainings need, or that they are to be tested on, was not precomputed.
        """
        for training in self._needing_alike().values():
            training.check()
        if test:
            store = open_store(self.experiment.recipe.cache.url)
            for name in self._test_sets():
                required_manifest(store, self.experiment.recipe, name)

    @contextmanager
    def cache_held(self) -> Iterator[None]:
        """Keep `ldznet cache collect --drop` from removing what the grid reads, between its trainings too."""
        with ExitStack() as stack:
            alike = self._needing_alike()
            for training in alike.values():
                stack.enter_context(training.cache_held())
            for cell in self.experiment.cells:
                self.training(cell).read_as(alike[cell.recipe.train.features])
            yield

    @contextmanager
    def recorded(self) -> Iterator[Tracker]:
        """The grid's run in MLflow, the parent of its trainings': a new one, or the one it had before."""
        recipe = self.experiment.recipe
        store = open_store(f"{self.experiment.recipe.storage_url}/{self.name}")
        quiet = recipe.tracking.named(self.name).model_copy(update={"system_metrics": False})
        with Tracker(quiet, folder=Path(recipe.output_folder)) as tracker:
            before = None
            if store.stat(RUN_RECORD) is not None:
                before = json.loads(store.get(RUN_RECORD)).get("run_id")
            axes = self._axes()
            tracker.start(
                job="grid",
                run_id=before,
                recipe=_common(recipe, axes),
                tags={"grid": self.name},
                owner=self.name,
                on_created=lambda run_id: store.put(RUN_RECORD, json.dumps({"run_id": run_id}).encode()),
            )
            self.training(self.experiment.cells[0]).log_input(tracker)
            tracker.log_text(json.dumps(axes, indent=1) + "\n", "grid.json")
            yield tracker

    def adopt(self, cell: Cell, tracker: Tracker) -> None:
        """Show a finished training under this grid, with its model in the output folder."""
        training = self.training(cell)
        finished = training.finished()
        assert finished is not None, "only what is finished is adopted"
        if finished.version is None and tracker.run_id is not None:  # MLflow was away, or off, at the time
            with training.recorded(parent_run_id=tracker.run_id, title=cell.title) as record:
                training.conclude(record, alias=None)
            return
        training.fetch_model()
        run_id, parent = finished.run_id, tracker.run_id
        if run_id is not None and parent is not None:
            tracker.use(
                "taking up a finished training",
                lambda client, _: client.set_tag(run_id, "mlflow.parentRunId", parent),
            )

    def results(self, failures: Mapping[Choices, str], *, score: Score | None = None) -> list[CellResult]:
        """What every cell came to, read from what it left; with `score`, test figures of its model too, made now."""
        tested = {} if score is None else self._test_figures(score)
        results = []
        for cell in self.experiment.cells:
            training = self.training(cell)
            finished = training.finished()
            if finished is None or cell.choices in failures:
                failure = failures.get(cell.choices)
                results.append(CellResult(cell=cell, training=training.name, failure=failure))
                continue
            results.append(
                CellResult(
                    cell=cell,
                    training=training.name,
                    run_id=finished.run_id,
                    version=finished.version,
                    step=int(finished.facts["step"]),
                    figures=validation_figures(finished.facts) | tested.get(cell.label, {}),
                )
            )
        return results

    def report(self, comparison: Comparison, tracker: Tracker) -> None:
        """Write the comparison into the grid's folder and its run; let `best` name the best of each kind of model."""
        self.folder.mkdir(parents=True, exist_ok=True)
        markdown = markdown_table(comparison)
        files = {
            "comparison.html": render_page(comparison, created=datetime.now(UTC)),
            "comparison.md": markdown,
            "comparison.csv": rows_csv(comparison),
            "trainings.csv": cells_csv(comparison),
        }
        for name, text in files.items():
            (self.folder / name).write_text(text, encoding="utf-8")
            tracker.log_text(text, name)
        tracker.set_tags({_DESCRIPTION_TAG: markdown})
        figures = {"trainings": float(len(comparison.cells)), "failed": float(len(comparison.failed))}
        if comparison.best_row is not None:
            figures |= {f"best/{name}": one.mean for name, one in comparison.best_row.figures.items()}
        # Each time that more is there to tell: a run's metrics only go on.
        tracker.log_metrics(figures, step=len(comparison.cells) - len(comparison.failed))
        self._name_best(comparison, tracker)

    def _name_best(self, comparison: Comparison, tracker: Tracker) -> None:
        """Only on val: without validation the newest version of each model stays without a name of ours."""
        for name in dict.fromkeys(training.registered_name for training in self._trainings.values()):
            own = [one for one in comparison.cells if self.training(one.cell).registered_name == name]
            best = compare(Experiment(cells=tuple(one.cell for one in own)), own).best_cell
            if best is not None and best.version is not None:
                set_alias(tracker, name, best.version, alias=BEST)

    def _test_figures(self, score: Score) -> dict[str, dict[str, float]]:
        labels = [cell.label for cell in self.experiment.cells if self.training(cell).finished() is not None]
        recipe = self.experiment.recipe
        if not labels:
            return {}
        systems = [
            SystemConfig(source=str(Path(recipe.output_folder) / "models" / label), name=label)
            for label in labels
        ]
        quick = recipe.evaluate.model_copy(update={"sets": self._test_sets(), "bootstrap": 0, "examples": 0})
        return test_figures(score(recipe.model_copy(update={"evaluate": quick}), systems))

    def _test_sets(self) -> tuple[str, ...]:
        """What `ldznet evaluate` would score, but for the set that chose weights and threshold."""
        recipe = self.experiment.recipe
        names = recipe.evaluate.sets or tuple(recipe.sets)
        sets = tuple(name for name in names if name not in {recipe.train_on, recipe.validate_on})
        if not sets:
            raise UserError(
                "there is no set to test on: give the recipe one besides those that train and validate"
            )
        return sets

    def _needing_alike(self) -> dict[str, TrainingRun]:
        """One training for each way of getting features: all read the same sets."""
        return {cell.recipe.train.features: self.training(cell) for cell in reversed(self.experiment.cells)}

    def _axes(self) -> dict[str, list[str]]:
        axes: dict[str, list[str]] = {}
        for cell in self.experiment.cells:
            for key, value in cell.choices:
                if value not in axes.setdefault(key, []):
                    axes[key].append(value)
        return axes


def _common(recipe: Recipe, axes: Mapping[str, list[str]]) -> dict[str, object]:
    """The recipe as plain data, with all alternatives where there are several."""
    plain = recipe.model_dump(mode="json")
    for key, values in axes.items():
        *sections, name = key.split(".")
        place = plain
        for section in sections:
            place = place[section]
        place[name] = " | ".join(values)
    return plain
