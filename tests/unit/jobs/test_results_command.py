"""`python -m jobs.results`: what cannot be run as asked is refused before any training; which command is recorded."""

import argparse
from pathlib import Path

import pytest

from jobs import results
from jobs.comparison import staying_record
from ldznet.score_results import Score
from pipeline.recipe_file import load_recipe
from pipeline.results.experiments import EXPERIMENTS
from pipeline.results.record import ResultRecord, ResultRow

TABLE = EXPERIMENTS["table"]


@pytest.fixture
def documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where records go; scenes and trainings would go beside it."""
    folder = tmp_path / "docs" / "results"
    monkeypatch.setattr(results, "DOCUMENTS", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def save_record(folder: Path, *, seeds: tuple[int, ...], overrides: tuple[str, ...] = ()) -> Path:
    rows = [
        ResultRow(
            model=cell.system,
            seed=cell.seed,
            set_name=name,
            phrases=9,
            parameters=None,
            miou=Score(value=0.5),
            iou_fg=Score(value=0.5),
            ap=Score(value=0.5),
            seconds_per_phrase=0.01,
        )
        for cell in TABLE.only(seeds=seeds).cells
        for name in TABLE.sets
    ]
    told = [f"evaluate.sets=[{','.join(TABLE.sets)}]", f"train.steps={TABLE.steps}", *overrides]
    recipe = load_recipe(results.COMPARED, told)
    made = ResultRecord.of(recipe, rows, name="table", command="make it", minutes={}, steps=TABLE.steps)
    return made.save(folder)


def test_rows_that_would_stay_beside_those_of_another_recipe_are_refused(
    documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_record(documents, seeds=(1, 2), overrides=("train.lr=0.1",))
    before = path.read_bytes()
    assert results.main(["--only", "table", "--seeds", "3"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"ldznet: {path} has rows of another recipe")
    assert told.endswith("move it away, or run all systems and seeds")
    assert path.read_bytes() == before
    assert not (documents.parents[1] / "runs").exists()


def test_the_record_on_file_stays_where_a_part_is_run_and_goes_where_all_is(documents: Path) -> None:
    def staying(*seeds: int, overrides: tuple[str, ...] = ()) -> ResultRecord | None:
        return staying_record(
            TABLE.only(seeds=seeds), recipe=results.COMPARED, overrides=overrides, into=documents
        )

    assert staying(3) is None
    path = save_record(documents, seeds=(1, 2))
    assert staying(3) == staying(2) == ResultRecord.load(path)
    assert staying() is staying(1, 2) is staying(overrides=("train.lr=0.1",)) is None


@pytest.mark.parametrize("part", ["table", "adapted"])
def test_a_picture_without_masks_is_refused(
    part: str, documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert results.main(["--only", part, "--set", "evaluate.examples=0"]) == 2
    assert "evaluate.examples=0 keeps no masks" in capsys.readouterr().err.splitlines()[-1]
    assert not (documents.parents[1] / "runs").exists()


def test_the_sets_that_the_results_speak_of_are_needed(
    documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert results.main(["--only", "adapted", "--set", "evaluate.sets=[foreign]"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == "ldznet: the results show scores on hidden: leave it in evaluate.sets"
    assert not (documents.parents[1] / "runs").exists()


def test_the_influence_of_another_sample_needs_one(
    documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert results.main(["--only", "influence", "--set", "evaluate.batch_size=1"]) == 2
    assert "needs evaluate.batch_size of 2 or more" in capsys.readouterr().err.splitlines()[-1]
    assert not (documents.parents[1] / "runs").exists()


def test_times_are_measured_by_what_is_tracked(documents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert results.main(["--only", "times", "--set", "tracking.enabled=false"]) == 2
    assert "tracking.enabled=false logs no rates" in capsys.readouterr().err.splitlines()[-1]
    assert not (documents.parents[1] / "runs").exists()


def test_the_command_that_is_recorded_says_what_was_asked() -> None:
    asked = argparse.Namespace(systems=["znet"], seeds=[1, 2], overrides=["evaluate.sets=[test]"])
    told = "python -m jobs.results --only table --systems znet --seeds 1 2 --set 'evaluate.sets=[test]'"
    assert results._command("table", asked) == told
    assert (
        results._command("adapted", asked)
        == "python -m jobs.results --only adapted --set 'evaluate.sets=[test]'"
    )
    plain = argparse.Namespace(systems=[], seeds=[], overrides=[])
    assert results._command("adapted", plain) == "python -m jobs.results --only adapted"
