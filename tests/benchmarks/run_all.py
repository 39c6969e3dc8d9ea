"""Runs every benchmark, each in a process of its own, and makes docs/benchmarks.md of their records.

python -m tests.benchmarks.run_all [NAME ...]

A benchmark that fails is reported at the end, and the others still run. Exit code 1 where one failed.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tests.benchmarks import table

ROOT = Path(__file__).parents[2]
BENCHMARKS = (
    "early_stop",
    "shared_work",
    "precompute_overhead",
    "two_workers",
    "shard_writing",
    "loader_s3",
    "loader_disk",
    "loader_first_batch",
    "loader_memory",
    "stored_types",
    "online_training",
    "checkpoint_upload",
    "plan_accuracy",
    "planning",
    "driver_bookkeeping",
)
NEEDS_CUDA = ("precompute_gpu",)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join((*BENCHMARKS, *NEEDS_CUDA)))
    names = parser.parse_args(argv).names or list(BENCHMARKS)
    if torch.cuda.is_available() and names == list(BENCHMARKS):
        names += NEEDS_CUDA
    failed = run_each(names)
    table.main()
    for name in failed:
        print(f"FAILED: python -m tests.benchmarks.{name}")  # noqa: T201 - what the caller is told
    for record in table.read_records():
        if table.verdict(record) == "**MISSED**":
            print(f"missed its target: {record['name']}, {record['value']} {record['unit']}")  # noqa: T201 - likewise
    return 1 if failed else 0


def run_each(names: Sequence[str], *, run: Callable[[str], int] | None = None) -> list[str]:
    """Run benchmarks in turn, whatever becomes of them. Returns those that failed."""
    run = run or _run
    failed = []
    for name in names:
        started = time.monotonic()
        code = run(name)
        outcome = "done" if code == 0 else f"exit code {code}"
        print(f"  {name}: {outcome}, {time.monotonic() - started:.0f} s", flush=True)  # noqa: T201 - progress
        if code:
            failed.append(name)
    return failed


def _run(name: str) -> int:
    return subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{name}"], cwd=ROOT, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
