"""A reader of pickles that hold plain data, which cannot execute anything.

REFER publishes its annotations as pickles, so files from the internet must be read. Python's own unpickler is
not used at all: this one knows only the opcodes that make lists, dicts, tuples, sets, text, bytes, numbers,
booleans and None. It has no way to import or call anything; all other opcodes are refused where they stand.
"""

import codecs
import pickletools
import struct
from collections.abc import Callable

from ldznet.errors import UserError

MAX_BYTES = 128 * 2**20  # REFER's largest file is a third of this
MAX_CONTAINERS = 10_000_000
MAX_STACK = 1_000_000
MAX_MEMO = 5_000_000  # a remembered value costs one byte of the file and a hundred of memory
MAX_LINE = 2**20

_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_KEY_TYPES = (str, bytes, int, float, bool, type(None))  # hashing these cannot recurse


class _RefusedError(ValueError):
    """Why a pickle is not read."""


def load_plain_pickle(data: bytes, *, place: str) -> object:
    """Read a pickle of plain containers, text, bytes and numbers (protocols 0 to 5).

    Python 2's byte strings become text: UTF-8 where they are, else Latin-1.

    Args:
        data: the whole file.
        place: what the file is called, for messages.

    Raises:
        UserError: the file is too large, damaged, or holds anything but plain data. Nothing was executed.
    """
    if len(data) > MAX_BYTES:
        raise UserError(f"{place}: a pickle of more than {MAX_BYTES} bytes is not read")
    machine = _Machine(data)
    try:
        return machine.run()
    except _RefusedError as refusal:
        raise UserError(
            f"{place}: {refusal} (byte {machine.start}); only plain lists, dicts, text and numbers are read: "
            "get the original file, or save it again as such"
        ) from refusal
    except (ValueError, LookupError, struct.error) as error:
        raise UserError(f"{place}: damaged pickle at byte {machine.start} ({error})") from error


class _Machine:
    """The pickle machine, plain opcodes only."""

    def __init__(self, data: bytes) -> None:
        self.start = 0  # of the present opcode
        self._data = data
        self._at = 0
        self._stack: list[object] = []
        self._below: list[list[object]] = []  # the stacks under each mark
        self._memo: dict[int, object] = {}
        self._containers = 0

    def run(self) -> object:
        data, size = self._data, len(self._data)
        while self._at < size:
            self.start = self._at
            code = data[self._at]
            self._at += 1
            handler = _HANDLERS.get(code)
            if handler is None:
                if code == _STOP:
                    return self._result()
                raise _RefusedError(f"the pickle holds {_NAMES.get(code, f'the unknown opcode {code}')}")
            handler(self)
            if len(self._stack) > MAX_STACK:
                raise _RefusedError("the pickle's stack grows too large")
        raise _RefusedError("the pickle is cut short")

    def _result(self) -> object:
        if self._below or len(self._stack) != 1:
            raise _RefusedError("the pickle ends with its stack in disorder")
        return self._stack[0]

    def take(self, count: int) -> bytes:
        end = self._at + count
        if count < 0 or end > len(self._data):
            raise _RefusedError("the pickle is cut short")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def number(self, layout: struct.Struct) -> int | float:
        value: int | float = layout.unpack(self.take(layout.size))[0]
        return value

    def line(self) -> bytes:
        end = self._data.find(b"\n", self._at, self._at + MAX_LINE)
        if end < 0:
            raise _RefusedError("a line without an end")
        taken = self._data[self._at : end]
        self._at = end + 1
        return taken

    def push(self, value: object) -> None:
        self._stack.append(value)

    def push_container(self, value: object) -> None:
        self._containers += 1
        if self._containers > MAX_CONTAINERS:
            raise _RefusedError("the pickle holds too many containers")
        self._stack.append(value)

    def pop(self) -> object:
        return self._stack.pop()

    def top(self) -> object:
        return self._stack[-1]

    def mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []
        if len(self._below) > MAX_STACK:
            raise _RefusedError("the pickle nests too deeply")

    def since_mark(self) -> list[object]:
        items = self._stack
        self._stack = self._below.pop()
        return items

    def discard(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self.since_mark()

    def remember(self, index: int) -> None:
        if len(self._memo) >= MAX_MEMO:
            raise _RefusedError("the pickle remembers too many values")
        self._memo[index] = self._stack[-1]

    def memoize(self) -> None:
        self.remember(len(self._memo))

    def recall(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def extend_list(self, items: list[object]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise _RefusedError("the pickle appends to something else than a list")
        target.extend(items)

    def extend_dict(self, items: list[object]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise _RefusedError("the pickle sets an item of something else than a dict")
        target.update(_pairs(items))

    def extend_set(self, items: list[object]) -> None:
        target = self._stack[-1]
        if not isinstance(target, set):
            raise _RefusedError("the pickle adds to something else than a set")
        target.update(_hashable(items))


def _pairs(items: list[object]) -> dict[object, object]:
    if len(items) % 2:
        raise _RefusedError("a key without a value")
    return dict(zip(_hashable(items[::2]), items[1::2], strict=True))


def _hashable(items: list[object]) -> list[object]:
    if any(type(item) not in _KEY_TYPES for item in items):
        raise _RefusedError("a key or set element that is neither text nor a number")
    return items


def _text_of_python_2(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _long(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


def _int_line(line: bytes) -> int | bool:
    return {b"00": False, b"01": True}.get(line, int(line))


def _long_line(line: bytes) -> int:
    return int(line.removesuffix(b"L"))


def _quoted_line(line: bytes) -> str:
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in {b"'", b'"'}:
        raise _RefusedError("a string without quotes")
    return _text_of_python_2(codecs.escape_decode(line[1:-1])[0])


def _unicode_line(line: bytes) -> str:
    return line.decode("raw-unicode-escape")


Handler = Callable[[_Machine], None]


def _number(layout: str) -> Handler:
    packed = struct.Struct(layout)
    return lambda machine: machine.push(machine.number(packed))


def _sized(layout: str, convert: Callable[[bytes], object]) -> Handler:
    packed = struct.Struct(layout)
    return lambda machine: machine.push(convert(machine.take(int(machine.number(packed)))))


def _lined(convert: Callable[[bytes], object]) -> Handler:
    return lambda machine: machine.push(convert(machine.line()))


def _constant(*, value: object) -> Handler:
    return lambda machine: machine.push(value)


def _tuple_of(count: int) -> Handler:
    return lambda machine: machine.push_container(tuple(reversed([machine.pop() for _ in range(count)])))


def _memo(action: Callable[[_Machine, int], None], layout: str) -> Handler:
    packed = struct.Struct(layout)
    return lambda machine: action(machine, int(machine.number(packed)))


def _memo_line(action: Callable[[_Machine, int], None]) -> Handler:
    return lambda machine: action(machine, int(machine.line()))


def _set_item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.extend_dict([key, value])


def _append(machine: _Machine) -> None:
    item = machine.pop()
    machine.extend_list([item])


_BY_NAME: dict[str, Handler] = {
    "PROTO": lambda machine: _check_protocol(machine.take(1)[0]),
    "FRAME": lambda machine: _ignore(machine.take(8)),
    "MARK": _Machine.mark,
    "POP": _Machine.discard,
    "POP_MARK": lambda machine: _ignore(machine.since_mark()),
    "DUP": lambda machine: machine.push(machine.top()),
    "NONE": _constant(value=None),
    "NEWTRUE": _constant(value=True),
    "NEWFALSE": _constant(value=False),
    "INT": _lined(_int_line),
    "LONG": _lined(_long_line),
    "FLOAT": _lined(float),
    "STRING": _lined(_quoted_line),
    "UNICODE": _lined(_unicode_line),
    "BININT": _number("<i"),
    "BININT1": _number("<B"),
    "BININT2": _number("<H"),
    "BINFLOAT": _number(">d"),
    "LONG1": _sized("<B", _long),
    "LONG4": _sized("<i", _long),
    "BINSTRING": _sized("<i", _text_of_python_2),
    "SHORT_BINSTRING": _sized("<B", _text_of_python_2),
    "BINBYTES": _sized("<I", bytes),
    "SHORT_BINBYTES": _sized("<B", bytes),
    "BINBYTES8": _sized("<Q", bytes),
    "BINUNICODE": _sized("<I", _text),
    "SHORT_BINUNICODE": _sized("<B", _text),
    "BINUNICODE8": _sized("<Q", _text),
    "EMPTY_LIST": lambda machine: machine.push_container([]),
    "LIST": lambda machine: machine.push_container(machine.since_mark()),
    "APPEND": _append,
    "APPENDS": lambda machine: _extend_marked(machine, _Machine.extend_list),
    "EMPTY_TUPLE": _constant(value=()),
    "TUPLE": lambda machine: machine.push_container(tuple(machine.since_mark())),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "EMPTY_DICT": lambda machine: machine.push_container({}),
    "DICT": lambda machine: machine.push_container(_pairs(machine.since_mark())),
    "SETITEM": _set_item,
    "SETITEMS": lambda machine: _extend_marked(machine, _Machine.extend_dict),
    "EMPTY_SET": lambda machine: machine.push_container(set()),
    "ADDITEMS": lambda machine: _extend_marked(machine, _Machine.extend_set),
    "FROZENSET": lambda machine: machine.push_container(frozenset(_hashable(machine.since_mark()))),
    "PUT": _memo_line(_Machine.remember),
    "BINPUT": _memo(_Machine.remember, "<B"),
    "LONG_BINPUT": _memo(_Machine.remember, "<I"),
    "MEMOIZE": _Machine.memoize,
    "GET": _memo_line(_Machine.recall),
    "BINGET": _memo(_Machine.recall, "<B"),
    "LONG_BINGET": _memo(_Machine.recall, "<I"),
}


def _extend_marked(machine: _Machine, extend: Callable[[_Machine, list[object]], None]) -> None:
    items = machine.since_mark()
    extend(machine, items)


def _check_protocol(protocol: int) -> None:
    if protocol > 5:
        raise _RefusedError(f"pickle protocol {protocol} is not known")


def _ignore(_: object) -> None:
    """Read, and of no account."""


_CODES = {name: code for code, name in _NAMES.items()}
_STOP = _CODES["STOP"]
_HANDLERS: dict[int, Handler] = {_CODES[name]: handler for name, handler in _BY_NAME.items()}
