"""Makes docs/benchmarks.md from the records in docs/benchmarks.

python -m tests.benchmarks.table
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.record import FOLDER, met

PAGE = FOLDER.parent / "benchmarks.md"

_HEAD = """# Benchmarks

Made by `make bench` from the records in `docs/benchmarks/`; do not edit. Both sides of a ratio are measured in one
run, in turns, after warming up; figures are medians. They hold for the machine named with them.

"""


def render(records: Sequence[Mapping[str, Any]]) -> str:
    """The page: one table of all values, then each benchmark's sides, runs, command, machine and versions."""
    ordered = sorted(records, key=lambda record: record["name"])
    lines = ["| benchmark | value | target | | date |", "| --- | --- | --- | --- | --- |"]
    lines += [_row(record) for record in ordered]
    return _HEAD + "\n".join(lines) + "\n" + "".join(_section(record) for record in ordered)


def read_records(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """All records of a folder."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def verdict(record: Mapping[str, Any]) -> str:
    """`met`, `MISSED`, or nothing where there is no target."""
    if record["target"] is None:
        return "for information"
    return "met" if met(record["value"], target=record["target"], better=record["better"]) else "**MISSED**"


def _row(record: Mapping[str, Any]) -> str:
    name = record["name"]
    value = f"{_number(record['value'])} {record['unit']}"
    return f"| [{name}](#{name}) | {value} | {_target(record)} | {verdict(record)} | {record['date']} |"


def _target(record: Mapping[str, Any]) -> str:
    if record["target"] is None:
        return "none"
    return f"{'at least' if record['better'] == 'higher' else 'at most'} {_number(record['target'])}"


def _section(record: Mapping[str, Any]) -> str:
    lines = ["", f"## {record['name']}", ""]
    if record.get("about"):
        lines += [record["about"], ""]
    if record.get("note"):
        lines += [f"**{_note_title(record)}** {record['note']}", ""]
    lines += ["| side | median | unit | each run |", "| --- | --- | --- | --- |"]
    for label, side in record["sides"].items():
        runs = ", ".join(_number(one) for one in side["runs"])
        lines.append(f"| {label} | {_number(side['median'])} | {side['unit']} | {runs} |")
    lines.append("")
    lines += [f"- {key}: {_detail(one)}" for key, one in record.get("details", {}).items()]
    machine = ", ".join(f"{key}: {one}" for key, one in record["machine"].items())
    versions = ", ".join(f"{key} {one}" for key, one in record["versions"].items())
    lines += [f"- runs a side: {record['runs']}", f"- command: `{record['command']}`"]
    lines += [f"- machine: {machine}", f"- versions: {versions}", f"- date: {record['date']}"]
    return "\n".join(lines) + "\n"


def _note_title(record: Mapping[str, Any]) -> str:
    return "Why the target is missed:" if verdict(record) == "**MISSED**" else "Note:"


def _detail(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key} {_detail(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(_detail(one) for one in value)
    return _number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def main() -> None:
    PAGE.write_text(render(read_records()), encoding="utf-8")


if __name__ == "__main__":
    main()
