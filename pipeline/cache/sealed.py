"""Sealed documents: JSON that carries the SHA-256 of its own text, so that one flipped bit anywhere is told."""

import hashlib
from typing import Final, TypeVar

from pydantic import ValidationError

from ldznet.config import Config
from ldznet.errors import UserError

_DIGITS = 64
_BEFORE: Final = b'{"sha256":"'
_BETWEEN: Final = b'","document":'
_AFTER: Final = b"}\n"
_Document = TypeVar("_Document", bound=Config)


class BrokenSealError(ValueError):
    """A sealed document is not what was sealed, or of another kind or version. What a store refuses is not this."""


class DamagedDocumentError(UserError):
    """What a user is told of a broken seal: it is safe to write that document anew."""


def seal(document: Config) -> bytes:
    """`{"sha256": …, "document": …}`. Equal documents, equal bytes."""
    body = document.model_dump_json(indent=1).encode()
    return _BEFORE + hashlib.sha256(body).hexdigest().encode() + _BETWEEN + body + _AFTER


def unseal(kind: type[_Document], data: bytes) -> _Document:
    """The document again.

    Raises:
        BrokenSealError: the seal is missing or broken, or the document is not one of this kind and version.
    """
    start = len(_BEFORE) + _DIGITS + len(_BETWEEN)
    digest, body = data[len(_BEFORE) : len(_BEFORE) + _DIGITS], data[start : -len(_AFTER)]
    framed = data == _BEFORE + digest + _BETWEEN + body + _AFTER
    if not framed or hashlib.sha256(body).hexdigest().encode() != digest:
        raise BrokenSealError("its text is not what its SHA-256 says")
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise BrokenSealError(f"{place}: {error.errors()[0]['msg']}") from error
