"""Arguments that several commands take, and the names of what they write."""

import argparse
import re
from collections.abc import Sequence


def whole_numbers(text: str) -> tuple[int, ...]:
    """`300,400` -> (300, 400)."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: give whole numbers from 0 on, such as 300,400")
    return tuple(int(part) for part in parts)


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
