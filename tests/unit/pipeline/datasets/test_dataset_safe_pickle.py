"""Pickles of plain data are read; whatever else a pickle holds is refused and runs nothing."""

import collections
import contextlib
import datetime as dt
import os
import pickle
import pickletools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldznet.errors import UserError
from pipeline.datasets import safe_pickle
from pipeline.datasets.safe_pickle import load_plain_pickle

ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
    | st.binary(max_size=300)
)
PLAIN = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(ATOMS, inner, max_size=4)
        | st.sets(st.integers(), max_size=4)
        | st.frozensets(st.text(max_size=3), max_size=4)
    ),
    max_leaves=15,
)


def _load(data: bytes) -> object:
    return load_plain_pickle(data, place="refs(unc).p")


def _uses_only_plain_opcodes(data: bytes) -> bool:
    """Old protocols write bytes and sets as calls, which are rightly refused."""
    return not {op.name for op, _, _ in pickletools.genops(data)} & {"GLOBAL", "REDUCE", "STACK_GLOBAL"}


@settings(deadline=None)
@given(value=PLAIN, protocol=st.integers(0, 5), slim=st.booleans())
def test_plain_data_comes_back(value: object, protocol: int, slim: bool) -> None:
    data = pickle.dumps(value, protocol=protocol)
    data = pickletools.optimize(data) if slim else data
    if _uses_only_plain_opcodes(data):
        loaded = _load(data)
        assert loaded == value
        assert repr(loaded) == repr(pickle.loads(data))  # also True and 1, 1 and 1.0 stay what they are
    else:
        with pytest.raises(UserError, match=r"the pickle holds (STACK_)?GLOBAL"):
            _load(data)


def test_large_containers_and_shared_parts() -> None:
    shared = ["x"]
    value = [list(range(5000)), {str(i): i for i in range(3000)}, shared, shared, "y" * 70_000, 2**9000]
    for protocol in range(6):
        loaded = _load(pickle.dumps(value, protocol=protocol))
        assert loaded == value
        assert isinstance(loaded, list)
        assert loaded[2] is loaded[3]


PYTHON_2_PROTOCOL_0 = b"""(lp1
(dp2
S'sent_ids'
p3
(lp4
I0
aI1
asS'file_name'
p5
S'COCO_train2014_000000581857_16.jpg'
p6
sS'ann_id'
p7
I1719310
sS'big'
L12345678901L
sS'flag'
I01
sS'none'
NsS'sentences'
(lp8
(dp9
S'raw'
p10
S"the caf\\xc3\\xa9's \\xb0\\n sign"
p11
sS'sent'
p12
Vthe caf\\u00e9
p13
sg5
S'caf\xc3\xa9'
p14
sS'score'
F0.5
sasa."""


def test_a_pickle_of_python_2() -> None:
    """As `pickle.dumps` of Python 2 writes it: byte strings in UTF-8 or Latin-1, longs, `I01` for True."""
    assert _load(PYTHON_2_PROTOCOL_0) == [
        {
            "sent_ids": [0, 1],
            "file_name": "COCO_train2014_000000581857_16.jpg",
            "ann_id": 1719310,
            "big": 12345678901,
            "flag": True,
            "none": None,
            "sentences": [
                {
                    "raw": b"the caf\xc3\xa9's \xb0\n sign".decode("latin-1"),  # no UTF-8 as a whole
                    "sent": "the café",
                    "file_name": "café",
                    "score": 0.5,
                }
            ],
        }
    ]


def test_a_binary_pickle_of_python_2() -> None:
    data = (
        b"\x80\x02]q\x01}q\x02(U\x05splitq\x03U\x05testAq\x04T\x03\x00\x00\x00rawq\x05"
        b"U\x04caf\xe9q\x06U\x01nK\x07ua."
    )
    assert _load(data) == [{"split": "testA", "raw": "café", "n": 7}]


class _Runs:
    def __init__(self, how: str, path: Path) -> None:
        self.how, self.path = how, str(path)

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.path,)) if self.how == "reduce" else (os.system, (f"mkdir '{self.path}'",))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("how", ["reduce", "system"])
def test_a_hostile_pickle_runs_nothing(tmp_path: Path, protocol: int, how: str) -> None:
    trace = tmp_path / "executed"
    data = pickle.dumps([{"ref_id": 1, "payload": _Runs(how, trace)}], protocol=protocol)
    with pytest.raises(
        UserError, match=r"refs\(unc\)\.p: the pickle holds (STACK_)?GLOBAL \(byte \d+\); only plain"
    ):
        _load(data)
    assert not trace.exists()
    pickle.loads(data)  # that it would have run elsewhere
    assert trace.exists()


@pytest.mark.parametrize(
    ("data", "opcode"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "GLOBAL"),
        (b"(S'true'\nios\nsystem\n.", "INST"),
        (b"(cos\nsystem\nS'true'\no.", "GLOBAL"),
        (b"(S'os'\nS'x'\no.", "OBJ"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.", "STACK_GLOBAL"),
        (b"]]R.", "REDUCE"),
        (b"}}b.", "BUILD"),
        (b"])\x81.", "NEWOBJ"),
        (b"])}\x92.", "NEWOBJ_EX"),
        (b"Pid\n.", "PERSID"),
        (b"K\x01Q.", "BINPERSID"),
        (b"\x82\x01.", "EXT1"),
        (b"\x83\x01\x00.", "EXT2"),
        (b"\x84\x01\x00\x00\x00.", "EXT4"),
        (b"\x97.", "NEXT_BUFFER"),
        (b"]\x98.", "READONLY_BUFFER"),
        (b"\x96" + bytes(8) + b".", "BYTEARRAY8"),
        (b"\xff.", "the unknown opcode 255"),
    ],
)
def test_each_opcode_beyond_plain_data_is_refused_by_name(data: bytes, opcode: str) -> None:
    with pytest.raises(UserError, match=f"the pickle holds {opcode} "):
        _load(data)


@pytest.mark.parametrize(
    "value",
    [
        np.float64(1),
        np.arange(3),
        dt.date(2020, 1, 1),
        collections.OrderedDict(a=1),
        print,
        int,
        1j,
        Path("x"),
        range(3),
    ],
)
def test_objects_of_libraries_are_refused(value: object) -> None:
    for protocol in (2, 4, 5):
        with pytest.raises(UserError, match="the pickle holds"):
            _load(pickle.dumps([{"ref_id": value}], protocol=protocol))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"]",
        b"(.",
        b"(]].",
        b"]].",
        b"a.",
        b"K\x01K\x02a.",
        b"}K\x01a.",
        b"]K\x01K\x02s.",
        b"(K\x01d.",
        b"g5\n.",
        b"j\xff\xff\xff\xff.",
        b"p0\n.",
        b"q\x00.",
        b"e.",
        b"Ixyz\n.",
        b"S'abc\n.",
        b"Sabc\n.",
        b"X\x05\x00\x00\x00ab.",
        b"T\xff\xff\xff\xffab.",
        b"\x8b\xff\xff\xff\xff.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x09].",
        b"\x80",
        b"}]K\x01s.",
        b"I" + b"9" * 5000 + b"\n.",
        b"\x8f(]\x90.",
        b"Vabc",
    ],
)
def test_damaged_pickles_are_one_line(data: bytes) -> None:
    with pytest.raises(UserError, match=r"^refs\(unc\)\.p: [^\n]*$"):
        _load(data)


@given(data=st.binary(max_size=60))
def test_any_bytes_are_data_or_refused(data: bytes) -> None:
    with contextlib.suppress(UserError):  # anything else fails the test
        _load(data)


@settings(deadline=None)
@given(value=PLAIN, protocol=st.integers(0, 5), place=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_changed_byte_is_data_or_refused(value: object, protocol: int, place: int, byte: int) -> None:
    data = bytearray(pickle.dumps(value, protocol=protocol))
    data[place % len(data)] = byte
    with contextlib.suppress(UserError):  # anything else fails the test
        _load(bytes(data))


def test_a_far_memo_index_takes_no_memory() -> None:
    """Python's own unpickler would make room for four thousand million entries here."""
    assert _load(b"]r\xf0\xff\xff\xff.") == []


def test_deep_nesting_neither_recurses_nor_overflows() -> None:
    depth = 200_000
    assert isinstance(_load(b"]" * depth + b"a" * (depth - 1) + b"."), list)
    with pytest.raises(UserError, match="neither text nor a number"):
        _load(b"})" + b"\x85" * depth + b"K\x01s.")  # hashing that tuple would overflow the stack


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_pickle, "MAX_CONTAINERS", 10)
    monkeypatch.setattr(safe_pickle, "MAX_STACK", 20)
    monkeypatch.setattr(safe_pickle, "MAX_BYTES", 1000)
    for data, reason in [
        (b"]" * 11 + b".", "too many containers"),
        (b"N" * 21 + b".", "grows too large"),
        (b"(" * 21 + b".", "nests too deeply"),
        (b"X" + struct.pack("<I", 2000) + b"x" * 2000 + b".", "more than 1000 bytes"),
    ]:
        with pytest.raises(UserError, match=reason):
            _load(data)
