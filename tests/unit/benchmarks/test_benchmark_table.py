"""The benchmarks' records, and the page that is made of them."""

import json
from pathlib import Path

import pytest

from tests.benchmarks.record import FOLDER, met, write_record
from tests.benchmarks.table import PAGE, read_records, render


def test_the_committed_page_is_what_the_records_make() -> None:
    records = read_records()
    if not records and not PAGE.exists():
        pytest.skip(f"no records in {FOLDER.name} yet")
    assert PAGE.read_text(encoding="utf-8") == render(records)


def test_a_record_says_what_its_reader_must_know(tmp_path: Path) -> None:
    path = write_record(
        name="example",
        value=1.76543,
        unit="x",
        better="higher",
        target=1.8,
        sides={"ours": [1.0, 3.0, 2.0], "theirs": [4.0, 4.0, 5.0]},
        sides_unit="s",
        command="python -m example",
        note="A slow disk.",
        folder=tmp_path,
    )
    record = json.loads(path.read_text())
    assert record["value"] == 1.765
    assert record["runs"] == 3
    assert record["sides"]["ours"] == {"median": 2.0, "unit": "s", "runs": [1.0, 3.0, 2.0]}
    assert {"name", "unit", "better", "target", "command", "machine", "versions", "date"} <= record.keys()
    assert {"cores", "cpu", "memory", "gpu"} <= record["machine"].keys()
    assert {"python", "torch", "diffusers", "ray"} <= record["versions"].keys()
    assert str(tmp_path) not in path.read_text()


@pytest.mark.parametrize(
    ("value", "better", "expected"),
    [
        (1.8, "higher", "met"),
        (1.7, "higher", "**MISSED**"),
        (1.8, "lower", "met"),
        (1.9, "lower", "**MISSED**"),
    ],
)
def test_a_missed_target_says_so(tmp_path: Path, value: float, better: str, expected: str) -> None:
    path = write_record(
        name="example",
        value=value,
        unit="x",
        better=better,  # type: ignore[arg-type]
        target=1.8,
        sides={"ours": [1.0]},
        sides_unit="s",
        command="python -m example",
        note="A slow disk.",
        folder=tmp_path,
    )
    page = render([json.loads(path.read_text())])
    (row,) = [line for line in page.splitlines() if line.startswith("| [example]")]
    assert f"| {expected} |" in row
    assert ("Why the target is missed" in page) == (expected != "met")
    assert met(value, target=1.8, better=better) == (expected == "met")


def test_a_note_stays_as_long_as_the_target_is_missed(tmp_path: Path) -> None:
    def note_of(value: float, **given: str) -> str:
        path = write_record(
            name="example",
            value=value,
            unit="x",
            better="higher",
            target=1.8,
            sides={"ours": [1.0]},
            sides_unit="s",
            command="python -m example",
            folder=tmp_path,
            **given,
        )
        return str(json.loads(path.read_text())["note"])

    assert note_of(1.7) == ""
    assert note_of(1.7, note="A slow disk.") == "A slow disk."
    assert note_of(1.6) == "A slow disk."
    assert note_of(1.9) == ""
    assert note_of(1.6) == ""
