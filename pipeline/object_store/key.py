"""Which keys an object may have: relative, with `/` between non-empty parts, on every store alike."""

import re

from ldznet.errors import UserError

LONGEST_KEY = 1024  # bytes of UTF-8; S3's limit

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_key(key: str) -> str:
    """The key itself where it can name an object; otherwise a `UserError` that says why not."""
    parts = key.split("/")
    if "" in parts:
        raise UserError(f"object key {key!r} has an empty part: keys are relative, like 'folder/name'")
    _check_parts(key, parts)
    return key


def check_prefix(prefix: str) -> str:
    """Like `check_key` for a listing's prefix, which may be empty or end with `/`."""
    parts = prefix.split("/")
    if "" in parts[:-1]:
        raise UserError(f"object prefix {prefix!r} has an empty part: prefixes are relative")
    _check_parts(prefix, parts)
    return prefix


def _check_parts(key: str, parts: list[str]) -> None:
    if "." in parts or ".." in parts:
        raise UserError(f"object key {key!r} leaves its store: '.' and '..' are no parts of a key")
    if _CONTROL.search(key):
        raise UserError(f"object key {key!r} has a control character: use printable characters")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise UserError(f"object key {key!r} is not text in UTF-8: rename it") from None
    if size > LONGEST_KEY:
        raise UserError(f"object key {key[:40]!r}… has {size} bytes, more than {LONGEST_KEY}: shorten it")
