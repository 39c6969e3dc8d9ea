"""The record of one experiment: docs/results/NAME.json."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

from ldznet.config import Config
from ldznet.errors import UserError
from ldznet.score_differences import Differences
from ldznet.score_results import Score
from pipeline.evaluation.run import Result
from pipeline.recipe import Recipe
from pipeline.results.origin import Recorded, made_here
from pipeline.results.seeds import over_seeds

PROTOCOL = "clipseg"  # by which all rows are scored
_AND = " && "  # between the commands of a record's parts
_ALSO = "; "  # between facts in which its parts differ

RowKey = tuple[str, int | None, str]  # model, seed, set


class ResultRow(Config):
    """One system on one set. Scores are shares in [0, 1], IoU at the threshold chosen on val."""

    model: str
    seed: int | None = None  # of its training, where it was trained for this
    train_minutes: float | None = None
    set_name: str
    phrases: int
    parameters: int | None
    miou: Score
    iou_fg: Score
    ap: Score
    seconds_per_phrase: float
    plain_masks: bool = False  # without probabilities: AP, of one point, says nothing

    @property
    def key(self) -> RowKey:
        """What no other row of its record is."""
        return (self.model, self.seed, self.set_name)

    @property
    def scores(self) -> tuple[object, ...]:
        """What a note may speak of."""
        return (self.key, self.miou, self.iou_fg, self.ap)

    @classmethod
    def of(
        cls,
        result: Result,
        *,
        model: str | None = None,
        seed: int | None = None,
        train_minutes: float | None = None,
    ) -> "ResultRow":
        """From an evaluation's result, under the evaluation's own name unless told."""
        scores = result.scores
        return cls(
            model=model or result.model,
            seed=seed,
            train_minutes=None if train_minutes is None else round(train_minutes, 2),
            set_name=result.set_name,
            phrases=scores.phrases,
            parameters=result.parameters,
            miou=scores.miou.at_val or scores.miou.at_fixed,
            iou_fg=scores.iou_fg.at_val or scores.iou_fg.at_fixed,
            ap=scores.ap,
            seconds_per_phrase=result.seconds_per_sample,
            plain_masks=result.plain_masks,
        )


class DifferenceRow(Differences):
    """How far one system is ahead of another on one set, over the seeds that both were trained with."""

    set_name: str
    first: str
    second: str
    seeds: int


def merged_rows(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """A row a set and system: means over its seeds; set by set, systems as they first come."""
    groups: dict[tuple[str, str], list[ResultRow]] = {}
    for set_name in dict.fromkeys(row.set_name for row in rows):
        for row in rows:
            if row.set_name == set_name:
                groups.setdefault((set_name, row.model), []).append(row)
    return [_merged(group) for group in groups.values()]


def _merged(group: Sequence[ResultRow]) -> ResultRow:
    minutes = [row.train_minutes for row in group if row.train_minutes is not None]
    figures = {
        "miou": over_seeds([row.miou for row in group]),
        "iou_fg": over_seeds([row.iou_fg for row in group]),
        "ap": over_seeds([row.ap for row in group]),
        "seconds_per_phrase": median(row.seconds_per_phrase for row in group),
        "train_minutes": median(minutes) if minutes else None,
    }
    return group[0].model_copy(update=figures)


class ResultRecord(Recorded):
    """An experiment's rows, and where they came from."""

    name: str
    recipe_digest: str
    rows: tuple[ResultRow, ...]
    differences: tuple[DifferenceRow, ...] = ()
    steps: int | None = None  # of each training

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        rows: Iterable[ResultRow],
        *,
        name: str,
        command: str,
        minutes: Mapping[str, float],
        steps: int | None = None,
        differences: Iterable[DifferenceRow] = (),
    ) -> "ResultRecord":
        """Of rows scored on this machine, today."""
        return cls(
            name=name,
            command=command,
            recipe_digest=recipe.digest(),
            rows=tuple(rows),
            differences=tuple(differences),
            minutes={station: round(taken, 1) for station, taken in minutes.items()},
            steps=steps,
            **made_here(),
        )

    def joined(self, earlier: "ResultRecord") -> "ResultRecord":
        """With the rows of an earlier record that this one lacks, and with its note where it still speaks the truth.

        Its machines, versions, dates and commands are those of both.

        Raises:
            UserError: a set has other phrases by now, so that its rows do not compare.
        """
        new = {row.key: row for row in self.rows}
        staying = [row for row in earlier.rows if row.key not in new]
        phrases = {row.set_name: row.phrases for row in self.rows}
        for row in staying:
            if phrases.get(row.set_name, row.phrases) != row.phrases:
                raise UserError(
                    f"the record of {self.name} has {row.phrases} phrases of {row.set_name}, which are "
                    f"{phrases[row.set_name]} now: move it away and run all; what is trained stays trained"
                )
        unchanged = all(new.get(row.key, row).scores == row.scores for row in earlier.rows)
        return self.model_copy(
            update={
                "rows": tuple(({row.key: row for row in earlier.rows} | new).values()),
                "differences": (),  # they take counts of both systems, which a record does not keep
                "command": _both(earlier.command, self.command, between=_AND),
                "minutes": {**self.minutes, **earlier.minutes},  # of a station that had work to do
                "machine": _both_facts(earlier.machine, self.machine),
                "versions": _both_facts(earlier.versions, self.versions),
                "date": _both(earlier.date, self.date),
                "note": self.note or (earlier.note if unchanged else ""),
            }
        )

    def in_order(self, models: Sequence[str]) -> "ResultRecord":
        """With its rows in the order of these models, set by set; of others as they came, behind them."""
        places = {model: place for place, model in enumerate(models)}
        rows = sorted(self.rows, key=lambda row: places.get(row.model, len(places)))
        return self.model_copy(update={"rows": tuple(rows)})

    def require_same(self, recipe: Recipe, *, path: Path, steps: int | None) -> None:
        """Refuse to stand beside rows of another recipe or length.

        Raises:
            UserError: names the record's file.
        """
        if (self.recipe_digest, self.steps) != (recipe.digest(), steps):
            raise UserError(
                f"{path} has rows of another recipe or number of steps, which new ones cannot stand beside: "
                "move it away, or run all systems and seeds"
            )

    @property
    def scores(self) -> list[tuple[object, ...]]:
        """Every row's, and whose they are."""
        return [row.scores for row in self.rows]

    @property
    def seeds(self) -> int:
        """Trainings of each system, at most."""
        return len({row.seed for row in self.rows if row.seed is not None})

    @property
    def merged(self) -> list[ResultRow]:
        """A row a set and system, means over seeds."""
        return merged_rows(self.rows)

    def save(self, folder: Path) -> Path:
        """Write it as `folder/NAME.json`. Where it has no note, that of a record of equal scores stays."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        record = self
        if path.is_file() and not self.note:
            before = self.load(path)
            if before.scores == self.scores:  # a note about other figures would be untrue
                record = self.model_copy(update={"note": before.note})
        partial = path.with_suffix(".partial")
        partial.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
        return path

    @classmethod
    def load(cls, path: Path) -> "ResultRecord":
        """Read one back."""
        return cls.model_validate_json(path.read_text(encoding="utf-8"))


def _both(earlier: str, now: str, *, between: str = _ALSO) -> str:
    """What is told twice once, what differs beside each other."""
    return earlier if now in earlier.split(between) else f"{earlier}{between}{now}"


def _both_facts(earlier: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    return {**now, **{name: _both(told, now.get(name, told)) for name, told in earlier.items()}}
