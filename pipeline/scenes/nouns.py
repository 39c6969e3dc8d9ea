"""The nouns that the clip-art shows: their English, which of them could be mixed up, and who is held out."""

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from ldznet.errors import UserError

VENDORED = Path(__file__).parent / "vendored"
_AN = ("hour", "x-ray")
_A = ("unicorn", "one", "uni", "eu")


@dataclass(frozen=True, slots=True)
class Noun:
    """One depictable thing.

    `many`: a plural-only word ("scissors"). `tint`: it may have any colour. `mirrored`: its drawings bear no
    writing that mirroring would spoil. `kinds`: what it could be taken for.
    """

    name: str
    plural: str
    many: bool
    tint: bool
    mirrored: bool
    kinds: frozenset[str]

    def indefinite(self, adjective: str = "") -> str:
        """The noun with "a" or "an", or bare where it is plural-only."""
        words = f"{adjective} {self.name}".strip()
        if self.many:
            return words
        vowel = words[0] in "aeioAEIO" or words.startswith(("u", *_AN))
        return f"{'an' if vowel and not words.startswith(_A) else 'a'} {words}"


@functools.cache
def load_nouns() -> tuple[Noun, ...]:
    """All nouns, the everyday ones first, in the order of the vendored list."""
    entries = json.loads((VENDORED / "nouns.json").read_text(encoding="utf-8"))
    return tuple(
        Noun(
            name=entry["noun"],
            plural=entry["plural"],
            many=entry.get("many", False),
            tint=entry.get("tint", False),
            mirrored=entry.get("mirrored", True),
            kinds=frozenset(entry.get("kinds", ())),
        )
        for entry in entries
    )


@functools.cache
def confusable(one: Noun, other: Noun) -> bool:
    """Whether a phrase for one of two different nouns could fairly be read as naming the other."""
    if one == other:
        return False
    one_ends_other = f" {other.name}".endswith(f" {one.name}")
    other_ends_one = f" {one.name}".endswith(f" {other.name}")
    return bool(one.kinds & other.kinds) or one_ends_other or other_ends_one


@functools.cache
def divide_nouns(*, limit: int | None, held_out: int) -> tuple[tuple[Noun, ...], tuple[Noun, ...]]:
    """The nouns seen in training and those held out, the latter drawn by hash so that a name decides.

    Raises:
        UserError: more nouns held out than there are to spare.
    """
    nouns = load_nouns()[:limit]
    if len(nouns) - held_out < 8:
        raise UserError(f"held_out_nouns is {held_out}, but of {len(nouns)} nouns 8 must stay: lower it")
    ranked = sorted(nouns, key=lambda noun: hashlib.sha256(noun.name.encode()).digest())
    out = frozenset(ranked[:held_out])
    return tuple(noun for noun in nouns if noun not in out), tuple(noun for noun in nouns if noun in out)
