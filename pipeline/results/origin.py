"""Where recorded figures came from: what every record of docs/results/ tells beside them."""

from datetime import UTC, datetime
from typing import Any

from pydantic import Field

from ldznet.config import Config
from pipeline.report.machine import machine_facts, package_versions

_HOST_FACTS = frozenset({"System"})  # say nothing about a figure


class Recorded(Config):
    """The base of records."""

    command: str  # that makes it again
    minutes: dict[str, float] = Field(default_factory=dict)  # of each station
    machine: dict[str, str]
    versions: dict[str, str]
    date: str
    note: str = ""  # what a person says of the figures


def made_here() -> dict[str, Any]:
    """Of every record: `machine`, `versions` and `date`."""
    return {
        "machine": {fact: told for fact, told in machine_facts().items() if fact not in _HOST_FACTS},
        "versions": package_versions(),
        "date": datetime.now(UTC).date().isoformat(),
    }
