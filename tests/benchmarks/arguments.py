"""The command line of a benchmark: the same for all."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.record import FOLDER


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """What a benchmark was asked for."""

    quick: bool  # tiny, only to see that it works
    rounds: int  # figures a side
    folder: Path  # where the record goes


def read_arguments(about: str | None, argv: Sequence[str] | None = None, *, rounds: int = 5) -> Arguments:
    """Read the command line. A quick run never writes among the committed records."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="a tiny run that shows that it works; needs --out"
    )
    parser.add_argument("--rounds", type=int, help=f"figures a side (default {rounds}; quick: 1)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the record")
    given = parser.parse_args(argv)
    if given.quick and given.out.resolve() == FOLDER.resolve():
        sys.exit("--quick is no measurement: name another folder with --out")
    return Arguments(
        quick=given.quick, rounds=given.rounds or (1 if given.quick else rounds), folder=given.out
    )
