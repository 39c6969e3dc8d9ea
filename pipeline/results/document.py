"""docs/results.md, written from the records beside it."""

import json
from pathlib import Path
from typing import Any, TypeVar

from ldznet.config import Config
from pipeline.report.markdown import render_markdown
from pipeline.results.influence import InfluenceRecord
from pipeline.results.learning_curve import plot_learning_curve
from pipeline.results.record import ResultRecord
from pipeline.results.times import TimesRecord

RECORDS = ("table", "start", "blocks", "text", "longer", "labels", "ablations", "adapted")
FACTS = ("ldm", "probe")  # records with figures of their own shape, or in a picture alone
Record = TypeVar("Record", bound=Config)
_TEMPLATE = Path(__file__).with_name("results.md.j2")


def write_document(folder: Path) -> Path:
    """Write `results.md` beside the folder of records. Returns its path."""
    records = {name: _read(ResultRecord, folder / f"{name}.json") for name in RECORDS}
    facts = {name: _facts(folder / f"{name}.json") for name in FACTS}
    if records["labels"]:
        (folder / "labels.png").write_bytes(plot_learning_curve(records["labels"].rows))
    others = {
        "times": _read(TimesRecord, folder / "times.json"),
        "influence": _read(InfluenceRecord, folder / "influence.json"),
    }
    told = folder / "summary.md"  # what a person says of all of them
    summary = told.read_text(encoding="utf-8").strip() if told.is_file() else ""
    text = render_markdown(_TEMPLATE, summary=summary, records=records, **others, **facts)
    page = folder.parent / "results.md"
    page.write_text(text.rstrip() + "\n", encoding="utf-8")
    return page


def _read(kind: type[Record], path: Path) -> Record | None:
    return kind.model_validate_json(path.read_bytes()) if path.is_file() else None


def _facts(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return facts
