"""Versions with known holes cannot be installed: lower bounds in pyproject.toml, kept by the pins."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

CHECKOUT = Path(__file__).parents[3]

# package -> the last version with the hole, the first without, the hole
HOLES = {
    "pillow": ("12.1.1", "12.2.0", "CVE-2026-42308: overflow in text rendering"),
    "mlflow": (
        "3.10.1",
        "3.11.0",
        "CVE-2026-2651, CVE-2026-4137: others' artifacts overwritten, open temporary folders",
    ),
    "ray": ("2.53.0", "2.54.0", "CVE-2026-27482, CVE-2025-62593: the dashboard used through a browser"),
    "torch": ("2.9.1", "2.10.0", "CVE-2026-24747, CVE-2025-32434: code run by weights_only loading"),
}


def requirements() -> dict[str, Requirement]:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    return {one.name: one for one in map(Requirement, project["dependencies"])}


def pins() -> dict[str, Version]:
    lines = (CHECKOUT / "constraints.txt").read_text().splitlines()
    return {name: Version(version) for name, version in (line.split("==") for line in lines if "==" in line)}


@pytest.mark.parametrize("package", HOLES)
def test_the_hole_is_out_of_bounds_and_the_mend_is_not(package: str) -> None:
    bad, good, _ = HOLES[package]
    allowed = requirements()[package].specifier
    assert bad not in allowed
    assert good in allowed


def test_pins_are_within_the_bounds() -> None:
    pinned = pins()
    for name, requirement in requirements().items():
        assert pinned[name] in requirement.specifier, name


def test_the_audit_looks_at_the_pins() -> None:
    makefile = (CHECKOUT / "Makefile").read_text()
    (recipe,) = re.findall(r"^audit:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert "pip-audit" in recipe
    assert "constraints.txt" in recipe
