"""The note of what an evaluation was made from: whole or not at all, and never in the way of another evaluation."""

import os
from pathlib import Path

import pytest

from jobs.evaluation_inputs import RECORD, EvaluationInputs


@pytest.fixture
def noted(tmp_path: Path) -> EvaluationInputs:
    """Inputs whose results lie in a folder and are noted there."""
    for name in ("evaluation.json", "report.html"):
        (tmp_path / name).write_text(name)
    inputs = EvaluationInputs(digest="0" * 64, folder=tmp_path)
    assert not inputs.were_evaluated()
    inputs.note()
    return inputs


def test_what_was_noted_is_found(noted: EvaluationInputs) -> None:
    assert noted.were_evaluated()
    assert not EvaluationInputs(digest="1" * 64, folder=noted.folder).were_evaluated()
    (noted.folder / "report.html").write_text("another")
    assert not noted.were_evaluated()


@pytest.mark.parametrize("left", [b"", b'{\n "inputs": "00', b"\xff\xfe\x00", b"[]"])
def test_a_torn_note_asks_for_another_evaluation(left: bytes, noted: EvaluationInputs) -> None:
    (noted.folder / RECORD).write_bytes(left)
    assert not noted.were_evaluated()
    noted.note()
    assert noted.were_evaluated()


def test_a_note_takes_the_place_of_the_one_before_at_once(noted: EvaluationInputs) -> None:
    """It is written beside: what was opened before stays whole."""
    before = (noted.folder / RECORD).read_bytes()
    os.link(noted.folder / RECORD, noted.folder / "as it was")
    EvaluationInputs(digest="1" * 64, folder=noted.folder).note()
    assert (noted.folder / "as it was").read_bytes() == before != (noted.folder / RECORD).read_bytes()
    assert {path.name for path in noted.folder.iterdir()} == {
        "as it was", "evaluation.json", RECORD, "report.html",
    }  # fmt: skip
