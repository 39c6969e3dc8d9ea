"""Arguments that several commands take, and the names of what they write."""

import argparse
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ldznet.errors import UserError


def whole_numbers(text: str) -> tuple[int, ...]:
    """`300,400` -> (300, 400)."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: give whole numbers from 0 on, such as 300,400")
    return tuple(int(part) for part in parts)


def make_writable(folder: Path) -> None:
    """Make the folder of `--out`, and see that files can be written there before anything is computed.

    Raises:
        UserError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written to: {error.strerror or error}") from error


def file_names(stem: str, phrases: Sequence[str]) -> list[str]:
    """One name a phrase, readable, and different also where phrases spell alike."""
    names: list[str] = []
    for phrase in phrases:
        slug = re.sub(r"[^a-z0-9]+", "-", phrase.lower()).strip("-")[:48] or "phrase"
        name, number = f"{stem}-{slug}", 2
        while name in names:
            name, number = f"{stem}-{slug}-{number}", number + 1
        names.append(name)
    return names
