"""Which files of a folder its ignore files name, by the rules of git's `gitignore`.

Our own, as a file too many may be a secret: of `*` and `!a/` together `pathspec` (1.1.1) leaves `a` out, or sends all
that lies in it, where git walks into `a` and takes what a file there takes back. The tests hold it against git itself.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Self

_TRAILING_SPACES = re.compile(r"(?<!\\) +$")
_ESCAPED = re.compile(r"\\(.)")
_ANY_DEPTH = "**"


@dataclass(frozen=True, kw_only=True, slots=True)
class IgnorePattern:
    """One line of an ignore file."""

    segments: tuple[str, ...]  # for `fnmatch`, one a folder
    negated: bool  # `!`: what it matches is not ignored
    folders_only: bool  # `/` at the end

    @classmethod
    def parse(cls, line: str) -> Self | None:
        """A line's pattern; None for a comment and for nothing."""
        text = _TRAILING_SPACES.sub("", line.rstrip("\r"))
        if text.startswith("#"):
            return None
        negated = text.startswith("!")
        body = text.removeprefix("!").rstrip("/") if negated else text.rstrip("/")
        if not body:
            return None
        segments = [_fnmatch_pattern(segment) for segment in body.removeprefix("/").split("/")]
        if "/" not in body:  # without a slash before its end it is meant at any depth
            segments.insert(0, _ANY_DEPTH)
        return cls(segments=tuple(segments), negated=negated, folders_only=text.endswith("/"))

    def matches(self, parts: Sequence[str], *, is_folder: bool) -> bool:
        """Whether it names this path itself; what lies below a folder that it names is for who walks to leave out.

        Args:
            parts: of the path, from the folder that holds the ignore file.
            is_folder: whether the path is one. A link to a folder is none.
        """
        return (is_folder or not self.folders_only) and _match(tuple(parts), self.segments)


@dataclass(frozen=True, kw_only=True, slots=True)
class IgnoreRules:
    """All ignore files of one name, from the top folder down to one that is being walked through."""

    name: str
    files: tuple[tuple[Path, tuple[IgnorePattern, ...]], ...] = ()  # folder, its patterns

    @classmethod
    def of_lines(cls, folder: Path, lines: Iterable[str]) -> Self:
        """Rules that no file adds to."""
        return cls(name="", files=((folder, _parsed(lines)),))

    def entering(self, folder: Path) -> Self:
        """The rules inside a folder, with its own file's where it has one."""
        path = folder / self.name
        if not self.name or not path.is_file():
            return self
        lines = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
        return type(self)(name=self.name, files=(*self.files, (folder, _parsed(lines))))

    def ignores(self, path: Path, *, is_folder: bool) -> bool:
        """Whether a path is ignored: the last matching pattern of the deepest file that has one decides."""
        for folder, patterns in reversed(self.files):
            parts = path.relative_to(folder).parts
            for pattern in reversed(patterns):
                if pattern.matches(parts, is_folder=is_folder):
                    return not pattern.negated
        return False


def _parsed(lines: Iterable[str]) -> tuple[IgnorePattern, ...]:
    return tuple(pattern for pattern in map(IgnorePattern.parse, lines) if pattern is not None)


def _match(parts: tuple[str, ...], segments: tuple[str, ...]) -> bool:
    if not segments:
        return not parts
    if segments[0] == _ANY_DEPTH:
        rest = segments[1:]
        if not rest:  # everything inside, and not the folder itself
            return bool(parts)
        only = len(parts) - len(rest)  # where the rest is of fixed length, it can begin at one place
        starts = range(len(parts)) if _ANY_DEPTH in rest else range(only, only + 1)
        return any(start >= 0 and _match(parts[start:], rest) for start in starts)
    return bool(parts) and fnmatchcase(parts[0], segments[0]) and _match(parts[1:], segments[1:])


def _fnmatch_pattern(segment: str) -> str:
    """Git's escapes and `[^…]` as Python's `fnmatch` has them."""
    told = _ESCAPED.sub(lambda found: f"[{found[1]}]" if found[1] in "*?[" else found[1], segment)
    return told.replace("[^", "[!")
