"""Records out of annotation files of any size, a chunk at a time, with what is wrong named by its place."""

import codecs
import json
import re
from array import array
from collections.abc import Iterator
from typing import Any

import xxhash

from ldznet.errors import UserError
from pipeline.object_store.store import ObjectStore

CHUNK_BYTES = 4 * 2**20
MAX_LINE_BYTES = 2**20  # of a JSON Lines file
MAX_RECORD_BYTES = 8 * 2**20  # of one element in a JSON file; as Python objects up to twenty times that

_AFTER_A_NUMBER = frozenset(",]} \t\r\n")
_SPACE = re.compile(r"[ \t\r\n]*")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")  # pipe:, file:, http:, s3:, C:


def require_object(store: ObjectStore, key: str, *, layout: str) -> None:
    """Tell early and clearly that a data set is not where it should be.

    Raises:
        UserError: the folder is missing or empty, or has no object `key`.
    """
    if store.stat(key) is not None:
        return
    if next(iter(store.list()), None) is None:
        raise UserError(f"data folder {store.url} is missing or empty: give the folder that holds {key}")
    raise UserError(f"data folder {store.url} has no {key}: {layout}")


def chunks(store: ObjectStore, key: str, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """An object's bytes in ranges, so that memory stays bounded."""
    info = store.stat(key)
    if info is None:
        raise UserError(f"{store.url}/{key} is missing")
    for start in range(0, info.size, chunk_bytes):
        yield store.get_range(key, start=start, length=min(chunk_bytes, info.size - start))


def json_lines(
    store: ObjectStore, key: str, *, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line's object of a JSON Lines file, with its place (`file:line`) for messages.

    Blank lines are skipped.

    Raises:
        UserError: a line is not a JSON object, or is too long.
    """
    for number, line in enumerate(_lines(store, key, chunk_bytes), start=1):
        place = f"{store.url}/{key}:{number}"
        if len(line) > MAX_LINE_BYTES:
            raise UserError(
                f"{place}: a line of more than {MAX_LINE_BYTES} bytes: one JSON object a line is expected"
            )
        if line.strip():
            yield place, _object(_parse(line, place), place)


def json_elements(
    store: ObjectStore, key: str, *, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The objects of a JSON file that is a list of objects, or an object of such lists, read as they come.

    Yields:
        The list's name (empty for a file that is one list), the element's place for messages, the element.
        Members that are no list are passed over.

    Raises:
        UserError: not such a JSON file, cut short, or an element too large.
    """
    text = _Text(store, key, chunk_bytes)
    if text.skip("["):
        yield from _list_elements(text, "")
    elif text.skip("{"):
        while not text.skip("}"):
            name = text.value()
            text.expect(":")
            if text.skip("["):
                yield from _list_elements(text, str(name))
            else:
                text.value()
            if not text.skip(","):
                text.expect("}")
                break
    else:
        raise UserError(f"{text.place}: not JSON (a list or an object is expected)")
    text.expect_end()


def field(record: dict[str, Any], name: str, kind: type | tuple[type, ...], place: str) -> Any:
    """A field of a record.

    Raises:
        UserError: it is missing or of another type.
    """
    if name not in record:
        raise UserError(f'{place}: "{name}" is missing')
    value = record[name]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if type(value) not in kinds:
        names = " or ".join(one.__name__ for one in kinds)
        raise UserError(f'{place}: "{name}" must be {names}, not {type(value).__name__}')
    return value


def object_key(text: str, name: str, place: str) -> str:
    """A key out of a record, which must stay inside the data set's folder.

    Raises:
        UserError: the key is absolute, climbs out, or is not in its plain form.
    """
    plain = text.isprintable() and "\\" not in text and not _SCHEME.match(text)
    if not plain or any(part in {"", ".", ".."} for part in text.split("/")):
        raise UserError(f'{place}: "{name}" must be a plain path inside the data folder, not {text[:80]!r}')
    return text


class LabelNames:
    """Keeps labels one of a kind: a repeated one gets `#2`, `#3`, in the file's order.

    Ten million labels take 270 MB at most: of those that came once, a hash of 64 bits is held.
    """

    def __init__(self) -> None:
        self._once = _HashSet()
        self._again: dict[str, int] = {}

    def name(self, label: str) -> str:
        """The label, or the label with its number where it came before."""
        if self._once.add(xxhash.xxh3_64_intdigest(label.encode("utf-8", "surrogatepass"))):
            return label
        count = self._again[label] = self._again.get(label, 1) + 1
        return f"{label}#{count}"


class _HashSet:
    """A set of 64-bit hashes in 12 to 27 bytes each: open addressing, at most two thirds full."""

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 1024))
        self._held = 0

    def add(self, value: int) -> bool:
        """False where it was there."""
        value = value or 1  # 0 marks a free slot
        slots, mask = self._slots, len(self._slots) - 1
        place = value & mask
        while slots[place]:
            if slots[place] == value:
                return False
            place = (place + 1) & mask
        slots[place] = value
        self._held += 1
        if 3 * self._held > 2 * len(slots):
            self._grow()
        return True

    def _grow(self) -> None:
        held, self._held = self._slots, 0
        self._slots = array("Q", bytes(2 * 8 * len(held)))
        for value in held:
            if value:
                self.add(value)


def _lines(store: ObjectStore, key: str, chunk_bytes: int) -> Iterator[bytes]:
    """Lines without their end; one that is too long comes as a piece just over the limit."""
    rest = b""
    for chunk in chunks(store, key, chunk_bytes=chunk_bytes):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
        if len(rest) > MAX_LINE_BYTES:
            break
    if rest:
        yield rest


def _list_elements(text: "_Text", name: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Elements up to the closing bracket; lists of other things than objects are passed over."""
    count = 0
    while not text.skip("]"):
        if count and not text.skip(","):
            text.expect("]")
            return
        count += 1
        element = text.value()
        if isinstance(element, dict):
            yield name, f"{text.place}, {name or 'element'} {count}", element
        elif not name:
            raise UserError(f"{text.place}, element {count}: a JSON object is expected")


def _parse(text: bytes, place: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UserError(f"{place}: JSON nested too deeply") from error
    except ValueError as error:
        raise UserError(f"{place}: not JSON ({error})") from error


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{place}: a JSON object is expected")
    return value


class _Text:
    """A JSON file's text, fetched as it is needed and let go as it is read."""

    def __init__(self, store: ObjectStore, key: str, chunk_bytes: int) -> None:
        self.place = f"{store.url}/{key}"
        self._chunks = chunks(store, key, chunk_bytes=chunk_bytes)
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._text = ""
        self._at = 0

    def skip(self, sign: str) -> bool:
        """Pass white space, and `sign` where it stands; whether it did."""
        found = self._next() == sign
        self._at += found
        return found

    def expect(self, sign: str) -> None:
        if not self.skip(sign):
            raise UserError(f'{self.place}: not JSON, or cut short ("{sign}" is expected)')

    def expect_end(self) -> None:
        if self._next():
            raise UserError(f"{self.place}: not JSON (more follows the end)")

    def value(self) -> Any:
        """The JSON value that begins here. It must be followed by something, as all but the whole file is."""
        self._next()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except RecursionError as error:
                raise UserError(f"{self.place}: JSON nested too deeply") from error
            except ValueError as error:
                if len(self._text) - self._at > MAX_RECORD_BYTES:
                    raise UserError(
                        f"{self.place}: an element of more than {MAX_RECORD_BYTES} bytes, or not JSON"
                    ) from error
                if not self._more():
                    raise UserError(f"{self.place}: not JSON, or cut short ({error})") from error
            else:
                # A number may go on in the next chunk: 1 in 12, 0 in 0.5, 3 in 3e8.
                whole = not isinstance(value, (int, float)) or self._text[end : end + 1] in _AFTER_A_NUMBER
                if whole or not self._more():
                    self._at = end
                    return value

    def _next(self) -> str:
        """The next character that is not white space, or nothing at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None, "the pattern matches the empty text too"
            self._at = match.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _more(self) -> bool:
        chunk = next(self._chunks, None)
        try:
            text = self._utf8.decode(chunk or b"", final=chunk is None)
        except UnicodeDecodeError as error:
            raise UserError(f"{self.place}: not UTF-8 text") from error
        self._text, self._at = self._text[self._at :] + text, 0
        return chunk is not None
