"""docs/results.md, written from the records beside it."""

import json
from pathlib import Path
from typing import Any

from pipeline.report.markdown import render_markdown
from pipeline.results.record import ResultRecord

RECORDS = ("table", "start", "labels", "ablations", "adapted")
LDM_FIGURES = "ldm.json"  # what `ldznet pretrain --show` measured, and its command
_TEMPLATE = Path(__file__).with_name("results.md.j2")


def write_document(folder: Path) -> Path:
    """Write `results.md` beside the folder of records. Returns its path."""
    records = {name: _record(folder / f"{name}.json") for name in RECORDS}
    text = render_markdown(_TEMPLATE, records=records, ldm=_ldm(folder / LDM_FIGURES))
    page = folder.parent / "results.md"
    page.write_text(text.rstrip() + "\n", encoding="utf-8")
    return page


def _record(path: Path) -> ResultRecord | None:
    return ResultRecord.load(path) if path.is_file() else None


def _ldm(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return figures
