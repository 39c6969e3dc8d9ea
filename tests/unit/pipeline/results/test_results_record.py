"""A record made in parts: rows made again replace their namesakes, others stay, and all that is told of it is true."""

from pathlib import Path

import pytest

from ldznet.errors import UserError
from ldznet.score_results import Score
from pipeline.recipe import Recipe
from pipeline.recipe_file import load_recipe
from pipeline.results.record import ResultRecord, ResultRow

RECIPE = Path(__file__).parents[4] / "jobs" / "recipes" / "scenes_128.yaml"


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(RECIPE)


def row(model: str, seed: int | None, *, miou: float = 0.5, set_name: str = "test") -> ResultRow:
    return ResultRow(
        model=model,
        seed=seed,
        set_name=set_name,
        phrases=9,
        parameters=None,
        miou=Score(value=miou),
        iou_fg=Score(value=0.6),
        ap=Score(value=0.7),
        seconds_per_phrase=0.01,
    )


def record(recipe: Recipe, *rows: ResultRow, command: str = "make one", note: str = "") -> ResultRecord:
    made = ResultRecord.of(recipe, rows, name="table", command=command, minutes={"scenes": 2.0}, steps=300)
    return made.model_copy(update={"note": note})


def keys(one: ResultRecord) -> list[tuple[str, int | None]]:
    return [(each.model, each.seed) for each in one.rows]


def test_a_seed_more_leaves_the_others_and_the_note(recipe: Recipe) -> None:
    earlier = record(
        recipe, row("znet", 1), row("znet", 2), row("noise-map", None), note="As the paper says."
    )
    again = row("noise-map", None).model_copy(update={"seconds_per_phrase": 0.02})
    joined = record(recipe, row("znet", 3), again, command="make another").joined(earlier)
    assert keys(joined) == [("znet", 1), ("znet", 2), ("noise-map", None), ("znet", 3)]
    assert joined.rows[2] == again
    assert joined.note == "As the paper says."  # the noise map's scores are those that it speaks of
    assert joined.command == "make one && make another"
    assert joined.seeds == 3


def test_rows_stand_in_the_order_of_the_experiment(recipe: Recipe) -> None:
    one = record(recipe, row("noise-map", None), row("znet", 2), row("ldznet", 1), row("znet", 1))
    ordered = keys(one.in_order(("ldznet", "znet")))
    assert ordered == [("ldznet", 1), ("znet", 2), ("znet", 1), ("noise-map", None)]


def test_a_row_with_other_scores_takes_the_note_away(recipe: Recipe, tmp_path: Path) -> None:
    earlier = record(recipe, row("znet", 1), row("znet", 2), note="As the paper says.")
    earlier.save(tmp_path)
    joined = record(recipe, row("znet", 2, miou=0.4)).joined(earlier)
    assert keys(joined) == [("znet", 1), ("znet", 2)]
    assert joined.rows[1].miou.value == 0.4
    joined.save(tmp_path)
    assert ResultRecord.load(tmp_path / "table.json").note == ""


def test_a_set_more_is_rows_more(recipe: Recipe) -> None:
    joined = record(recipe, row("znet", 1, set_name="foreign")).joined(record(recipe, row("znet", 1)))
    assert [each.set_name for each in joined.rows] == ["test", "foreign"]


def test_what_the_parts_were_made_by_stands_beside_each_other(recipe: Recipe) -> None:
    earlier = record(recipe, row("znet", 1)).model_copy(
        update={
            "machine": {"Processor": "slow"},
            "versions": {"torch": "1", "numpy": "2"},
            "date": "2026-01-02",
        }
    )
    later = record(recipe, row("znet", 2), command="make another").model_copy(
        update={
            "machine": {"Processor": "quick"},
            "versions": {"torch": "1", "numpy": "3"},
            "date": "2026-01-03",
        }
    )
    joined = later.model_copy(update={"minutes": {"scenes": 0.0, "precompute": 4.0}}).joined(earlier)
    assert joined.machine == {"Processor": "slow; quick"}
    assert joined.versions == {"torch": "1", "numpy": "2; 3"}
    assert joined.date == "2026-01-02; 2026-01-03"
    assert joined.minutes == {"scenes": 2.0, "precompute": 4.0}
    assert later.joined(joined).command == "make one && make another"  # told once, however often it is run


def test_rows_of_another_recipe_or_length_are_not_joined(recipe: Recipe) -> None:
    path = Path("docs/results/table.json")
    one = record(recipe, row("znet", 1))
    one.require_same(recipe, path=path, steps=300)
    other = load_recipe(RECIPE, ["train.lr=0.1"])
    for asked, steps in ((other, 300), (recipe, 400)):
        with pytest.raises(
            UserError, match=r"^docs/results/table\.json has rows of another recipe .* move it away"
        ):
            one.require_same(asked, path=path, steps=steps)


def test_a_set_whose_phrases_are_others_by_now_is_not_joined(recipe: Recipe) -> None:
    earlier = record(recipe, row("znet", 1), row("znet", 1, set_name="foreign"))
    now = row("znet", 2, set_name="foreign").model_copy(update={"phrases": 8})
    with pytest.raises(
        UserError, match="the record of table has 9 phrases of foreign, which are 8 now: move it"
    ):
        record(recipe, row("znet", 2), now).joined(earlier)
    again = row("znet", 1, set_name="foreign").model_copy(update={"phrases": 8})
    assert len(record(recipe, again, now).joined(earlier).rows) == 3
