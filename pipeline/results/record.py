"""The record of one experiment: docs/results/NAME.json."""

from datetime import UTC, datetime
from pathlib import Path

from ldznet.config import Config
from ldznet.score_results import Score
from pipeline.evaluation.run import Evaluation, Result
from pipeline.recipe import Recipe
from pipeline.report.machine import machine_facts, package_versions

_HOST_FACTS = frozenset({"System"})  # say nothing about a figure


class ResultRow(Config):
    """One system on one set. Scores are shares in [0, 1], IoU at the threshold chosen on val."""

    model: str
    set_name: str
    phrases: int
    parameters: int | None
    miou: Score
    iou_fg: Score
    ap: Score
    seconds_per_phrase: float

    @classmethod
    def of(cls, result: Result) -> "ResultRow":
        """From an evaluation's result."""
        scores = result.scores
        return cls(
            model=result.model,
            set_name=result.set_name,
            phrases=scores.phrases,
            parameters=result.parameters,
            miou=scores.miou.at_val or scores.miou.at_fixed,
            iou_fg=scores.iou_fg.at_val or scores.iou_fg.at_fixed,
            ap=scores.ap,
            seconds_per_phrase=result.seconds_per_sample,
        )


class ResultRecord(Config):
    """An experiment's rows, and where they came from."""

    name: str
    command: str
    recipe_digest: str
    rows: tuple[ResultRow, ...]
    minutes: dict[str, float]  # of each station
    machine: dict[str, str]
    versions: dict[str, str]
    date: str

    @classmethod
    def of(
        cls, recipe: Recipe, evaluation: Evaluation, *, name: str, command: str, minutes: dict[str, float]
    ) -> "ResultRecord":
        """From a finished evaluation, on this machine, today."""
        machine = {fact: told for fact, told in machine_facts().items() if fact not in _HOST_FACTS}
        return cls(
            name=name,
            command=command,
            recipe_digest=recipe.digest(),
            rows=tuple(map(ResultRow.of, evaluation.results)),
            minutes={station: round(taken, 1) for station, taken in minutes.items()},
            machine=machine,
            versions=package_versions(),
            date=datetime.now(UTC).date().isoformat(),
        )

    def save(self, folder: Path) -> Path:
        """Write it as `folder/NAME.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: Path) -> "ResultRecord":
        """Read one back."""
        return cls.model_validate_json(path.read_text(encoding="utf-8"))
