"""A grid: overrides of which some name alternatives, such as `network.fusion=cross_attention,concat train.seed=1,2,3`.

A comma outside brackets and quotes parts alternatives, so that `network.blocks=[8,9]` is one value and
`network.blocks=[8],[8,9]` are two.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

from pydantic import BaseModel

from ldznet.errors import UserError
from pipeline.recipe import Recipe

SECTIONS: Final = ("network", "train", "loader")  # what may vary over one cache
_OPENING, _CLOSING = "[{(", "]})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A key and its alternatives, as they were written."""

    key: str  # such as `train.seed`
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """What is the same in all cells, and what varies."""

    fixed: tuple[str, ...]  # overrides
    axes: tuple[Axis, ...]

    def choices(self) -> Iterator[tuple[tuple[str, str], ...]]:
        """The (key, value) pairs of each cell; the last axis varies fastest. Without axes one cell, of none."""
        keys = [axis.key for axis in self.axes]
        for values in product(*(axis.values for axis in self.axes)):
            yield tuple(zip(keys, values, strict=True))


def read_grid(overrides: Sequence[str]) -> Grid:
    """Tell overrides with alternatives from those without.

    A key without a dot that is none of the recipe's own is short for the one key of `network`, `train` or `loader`
    with that name.

    Raises:
        UserError: alternatives of a key that no grid over one cache can vary, a short key that means several, an
            alternative that is empty or named twice.
    """
    fixed, axes, keys = [], [], []
    for override in overrides:
        short, equals, value = override.partition("=")
        if not equals:
            fixed.append(override)  # refused where overrides are applied
            continue
        key = _full_key(short)
        values = _alternatives(value)
        keys.append(key)
        if len(values) == 1:
            fixed.append(f"{key}={value}")
        else:
            axes.append(_axis(key, values, written=override))
    for axis in axes:
        if keys.count(axis.key) > 1:
            raise UserError(f"{axis.key} is given twice: name all its alternatives at once")
    return Grid(fixed=tuple(fixed), axes=tuple(axes))


def _full_key(key: str) -> str:
    if "." in key or key in Recipe.model_fields:
        return key
    meant = [f"{section}.{key}" for section in SECTIONS if key in _keys_of(section)]
    if len(meant) > 1:
        raise UserError(f"{key!r} is short for {' and '.join(meant)}: write the one that you mean")
    return meant[0] if meant else key


def _keys_of(section: str) -> dict[str, object]:
    model = Recipe.model_fields[section].annotation
    assert isinstance(model, type) and issubclass(model, BaseModel), "a section is a configuration"
    return dict(model.model_fields)


def _axis(key: str, values: list[str], *, written: str) -> Axis:
    if not key.startswith(tuple(f"{section}." for section in SECTIONS)):
        raise UserError(
            f"{written!r}: a grid runs over one cache, so only keys of {', '.join(SECTIONS)} have alternatives; "
            f"where the comma is part of the value, quote it: {key}='\"…\"'"
        )
    if "" in values:
        raise UserError(f"{written!r}: one of the alternatives is empty: write {key}=A,B")
    (value, times), *_ = Counter(values).most_common(1)
    if times > 1:
        raise UserError(f"{written!r} names {value} {times} times: name each alternative once")
    return Axis(key=key, values=tuple(values))


def _alternatives(value: str) -> list[str]:
    """The parts between commas that are outside brackets and quotes."""
    parts, depth, quote, begins = [""], 0, "", True
    for letter in value:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and begins:  # within a word it is an apostrophe
            quote = letter
        elif letter in _OPENING:
            depth += 1
        elif letter in _CLOSING:
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append("")
            begins = True
            continue
        begins = letter in f",: {_OPENING}" or (begins and letter.isspace())
        parts[-1] += letter
    return [part.strip() for part in parts] if len(parts) > 1 and not quote and depth == 0 else [value]
