"""Compare networks: train each on equal data with equal steps and learning rate, score all on the same sets."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ldznet.errors import UserError

if TYPE_CHECKING:
    from pipeline.recipe import Recipe
    from pipeline.results.experiments import Cell, Experiment
    from pipeline.results.record import ResultRecord, ResultRow

logger = logging.getLogger("jobs.results")


def compare(
    experiment: "Experiment", *, recipe: Path, overrides: Sequence[str], command: str, into: Path
) -> None:
    """Run an experiment, and save its record and its picture. Rows on file that are not made again stay.

    Args:
        experiment: what to train and to score.
        recipe: its file.
        overrides: of that file; they come before the experiment's own.
        command: that does it again, for the record.
        into: folder of the records.

    Raises:
        UserError: see `staying_record`; nothing has been trained then.
    """
    from pipeline.results.differences import experiment_differences
    from pipeline.results.experiments import EXPERIMENTS
    from pipeline.results.masks_sheet import masks_sheet
    from pipeline.results.record import ResultRecord

    earlier = staying_record(experiment, recipe=recipe, overrides=overrides, into=into)
    comparison = _Comparison(experiment, path=recipe, overrides=overrides)
    comparison.prepare()
    for number, cell in enumerate(experiment.cells, 1):
        logger.info("%s: %s, %d of %d", experiment.name, cell.label, number, len(experiment.cells))
        comparison.train_and_score(cell)
    comparison.score_others()
    made = ResultRecord.of(
        comparison.recipe,
        comparison.rows,
        name=experiment.name,
        command=command,
        minutes=comparison.minutes,
        steps=comparison.recipe.train.steps,
        differences=experiment_differences(experiment, comparison.scored),
    )
    whole = EXPERIMENTS.get(experiment.name, experiment)
    record = made.joined(earlier).in_order(whole.systems) if earlier else made
    record.save(into)
    shown = comparison.shown
    # A part of the systems leaves the picture as it is: the page says that it shows all.
    if experiment.shown and {row.model for row in record.rows} <= set(shown.values()):
        sheet = masks_sheet(comparison.scored, set_name=experiment.shown, models=shown)
        sheet.save(into / f"{experiment.name}.jpg", quality=88)


def staying_record(
    experiment: "Experiment", *, recipe: Path, overrides: Sequence[str], into: Path
) -> "ResultRecord | None":
    """The record on file, where rows of it stay that the experiment does not make again. Quick: nothing is trained.

    Raises:
        UserError: they are of another recipe or number of steps, or the recipe keeps no masks for the picture or
            scores by another protocol.
    """
    from pipeline.results.masks_sheet import require_examples
    from pipeline.results.record import PROTOCOL, ResultRecord

    used = _recipe_of(experiment, recipe, overrides)
    if PROTOCOL not in used.evaluate.protocols:
        raise UserError(f"the comparisons score by the protocol {PROTOCOL}: leave it in evaluate.protocols")
    if experiment.shown:
        require_examples(used)
    path = into / f"{experiment.name}.json"
    if not path.is_file():
        return None
    record = ResultRecord.load(path)
    if all(experiment.makes(row.model, seed=row.seed, set_name=row.set_name) for row in record.rows):
        return None
    record.require_same(used, path=path, steps=used.train.steps)
    return record


def _recipe_of(experiment: "Experiment", path: Path, overrides: Sequence[str]) -> "Recipe":
    from pipeline.recipe_file import load_recipe

    of_experiment = [f"evaluate.sets=[{','.join(experiment.sets)}]", f"train.steps={experiment.steps}"]
    return load_recipe(path, [*of_experiment, *overrides])


class _Comparison:
    """The rows of an experiment, as they come."""

    def __init__(self, experiment: "Experiment", *, path: Path, overrides: Sequence[str]) -> None:
        from pipeline.evaluation.run import Evaluation
        from pipeline.results.minutes import Minutes

        self._experiment, self._path, self._overrides = experiment, path, overrides
        self.recipe = self._loaded()
        self.rows: list[ResultRow] = []
        self.scored = Evaluation()
        self._minutes: Minutes = Minutes(Path(self.recipe.output_folder) / "minutes.json")
        self._computed: set[str] = set()  # features, by how they differ from the recipe's

    def prepare(self) -> None:
        """Scenes and features."""
        from jobs.scenes import scenes

        self._minutes.of("scenes", partial(scenes, self.recipe))
        self._precompute(self.recipe)

    @property
    def minutes(self) -> dict[str, float]:
        """What came before the trainings, which have minutes of their own."""
        stations = {"scenes", *self._computed}
        return {name: taken for name, taken in self._minutes.taken.items() if name in stations}

    @property
    def shown(self) -> dict[str, str]:
        """The systems of the picture, one seed of each: their names in the evaluation, and in words."""
        first = {cell.system: cell for cell in reversed(self._experiment.cells)}
        trained = {cell.label: system for system, cell in first.items()}
        others = [row.model for row in self.rows if row.seed is None]
        return {**dict(reversed(trained.items())), **dict(zip(others, others, strict=True))}

    def train_and_score(self, cell: "Cell") -> None:
        """One training, and its rows."""
        from jobs.train import PlaceInGrid, train
        from pipeline.evaluation.run import evaluate_models
        from pipeline.results.record import PROTOCOL, ResultRow
        from pipeline.training.rank_training import training_identity

        recipe = self._loaded(cell.all_overrides)
        self._precompute(recipe)
        place = PlaceInGrid(label=cell.label, title=cell.label, parent_run_id=None, wait_minutes=None)
        # By what is trained: a training that another experiment names too has taken its minutes once.
        station = f"train {recipe.network.label}-{training_identity(recipe)}"
        folder = self._minutes.of(station, partial(train, recipe, place=place))
        asked = self._experiment.scored_as(cell, str(folder))
        scored = evaluate_models(recipe, [system for _, system in asked])
        self.scored.add(scored)
        systems = {system.name: name for name, system in asked}
        taken = self._minutes.taken[station]
        self.rows += [
            ResultRow.of(one, model=systems[one.model], seed=cell.seed, train_minutes=taken)
            for one in scored.results
            if one.protocol == PROTOCOL
        ]

    def score_others(self) -> None:
        """What is trained elsewhere, or not at all."""
        from pipeline.evaluation.run import evaluate_models
        from pipeline.results.record import PROTOCOL, ResultRow

        if self._experiment.others:
            scored = evaluate_models(self.recipe, self._experiment.others)
            self.scored.add(scored)
            self.rows += [ResultRow.of(one) for one in scored.results if one.protocol == PROTOCOL]

    def _loaded(self, overrides: Sequence[str] = ()) -> "Recipe":
        return _recipe_of(self._experiment, self._path, [*self._overrides, *overrides])

    def _precompute(self, recipe: "Recipe") -> None:
        from jobs.precompute import precompute

        asked = recipe.features.model_dump(mode="json")
        usual = self.recipe.features.model_dump(mode="json")
        different = [f"{name}={value}" for name, value in asked.items() if value != usual[name]]
        station = " ".join(["precompute", *different])
        if station not in self._computed:
            self._computed.add(station)
            self._minutes.of(station, partial(precompute, recipe))
