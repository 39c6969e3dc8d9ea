"""Finding a cache and its numeric specifications by what a person types."""

import re
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Final

from ldznet.errors import UserError
from pipeline.cache import layout
from pipeline.object_store.store import ObjectStore

SHORT_DIGITS: Final = 12

_KEY: Final = re.compile(r"[0-9a-f]{64}")
_OBJECT: Final = re.compile(r"(?:specs|requests|leases|[0-9a-f]{64})/.+")


def list_cache_keys(store: ObjectStore) -> list[str]:
    """Every numeric specification by its key, whether this version can read it or not.

    Raises:
        UserError: the URL holds no cache.
    """
    listed = (info.key for info in store.list(layout.SPEC_PREFIX))
    keys = [name for key in listed if _KEY.fullmatch(name := _name_of(key))]
    if not keys:
        require_cache(store)
    return keys


def _name_of(spec_key: str) -> str:
    return spec_key.removeprefix(layout.SPEC_PREFIX).removesuffix(".json")


def require_cache(store: ObjectStore) -> None:
    """Refuse a place where nothing, or something else, lies.

    Raises:
        UserError: tells which.
    """
    first = next(iter(store.list()), None)
    if first is None:
        raise UserError(f"there is nothing at {store.url}: name a recipe's cache.url")
    if not _OBJECT.fullmatch(first.key):
        raise UserError(
            f"{store.url} holds no feature cache, but {first.key!r} and the like: name a recipe's cache.url"
        )


def find_cache_key(store: ObjectStore, prefix: str) -> str:
    """The one numeric specification whose key starts so.

    Raises:
        UserError: none does, or several do.
    """
    if not prefix:
        there = ", ".join(shorten(list_cache_keys(store)).values()) or "none yet"
        raise UserError(f"which cache of {store.url}? Give the first digits of its key: {there}")
    if _KEY.fullmatch(prefix) and next(store.list(f"{prefix}/"), None):  # though its text may be gone
        return prefix
    keys = list_cache_keys(store)
    found = [key for key in keys if key.startswith(prefix.lower())]
    if len(found) == 1:
        return found[0]
    if not found:
        there = ", ".join(shorten(keys).values()) or "none yet"
        raise UserError(
            f"no numeric specification in {store.url} has a key that starts with {prefix!r}: there are {there}"
        )
    several = ", ".join(_shorten_to_tell_apart(found))
    raise UserError(f"{prefix!r} may be {several}: give more digits")


def shorten(keys: Collection[str]) -> dict[str, str]:
    """Each key's shortest prefix of at least 12 digits that is nobody else's."""
    return dict(zip(keys, _shorten_to_tell_apart(list(keys)), strict=True))


def _shorten_to_tell_apart(keys: Sequence[str]) -> list[str]:
    ordered = sorted(keys)
    digits = dict.fromkeys(ordered, SHORT_DIGITS)
    for before, after in pairwise(ordered):
        shared = next((n for n, (a, b) in enumerate(zip(before, after, strict=True)) if a != b), len(after))
        digits[before] = max(digits[before], shared + 1)
        digits[after] = max(digits[after], shared + 1)
    return [key[: digits[key]] for key in keys]
