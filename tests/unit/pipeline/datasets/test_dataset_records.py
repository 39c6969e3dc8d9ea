"""Records out of annotation files: the same at any chunk size, and every fault with its place."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ldznet.errors import UserError
from pipeline.datasets import records
from pipeline.datasets.records import LabelNames, field, json_elements, json_lines, object_key
from pipeline.object_store.files import FileStore

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), max_size=5)
WRITES_ONE_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def _store(root: Path, text: str | bytes) -> FileStore:
    (root / "f.json").write_bytes(text.encode() if isinstance(text, str) else text)
    return FileStore(root=root)


def _elements(root: Path, text: str | bytes, chunk_bytes: int = 1000) -> list[tuple[str, Any]]:
    found = json_elements(_store(root, text), "f.json", chunk_bytes=chunk_bytes)
    return [(name, element) for name, _, element in found]


@WRITES_ONE_FILE
@given(
    objects=OBJECTS,
    chunk_bytes=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
)
def test_a_list_at_any_chunk_size(
    tmp_path: Path, objects: list[dict[str, Any]], chunk_bytes: int, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(objects, indent=indent, ensure_ascii=ascii_only)
    assert _elements(tmp_path, text, chunk_bytes) == [("", element) for element in objects]


@WRITES_ONE_FILE
@given(first=OBJECTS, second=OBJECTS, other=VALUES, chunk_bytes=st.integers(1, 40))
def test_an_object_of_lists(tmp_path: Path, first: list, second: list, other: Any, chunk_bytes: int) -> None:
    other = None if isinstance(other, list) else other
    text = json.dumps({"images": first, "info": other, "annotations": second, "numbers": [1, [2], "x"]})
    wanted = [("images", one) for one in first] + [("annotations", one) for one in second]
    assert _elements(tmp_path, text, chunk_bytes) == wanted


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("hello", "not JSON"),
        ("[1, 2]", "element 1: a JSON object is expected"),
        ('[{"a": 1}', "cut short"),
        ('[{"a": 1', "cut short"),
        ('[{"a": 1},', "cut short"),
        ('[{"a": 1} {"a": 2}]', "is expected"),
        ('[{"a": 1}] []', "more follows"),
        ('{"a": [{}]', "cut short"),
        ('{"a" [{}]}', "is expected"),
        (b'[{"a": "\xff"}]', "not UTF-8"),
        ("[" + '{"a":' * 20_000 + "1" + "}" * 20_000 + "]", "nested too deeply"),
        ('[{"a": ' + "9" * 5000 + "}]", "not JSON, or cut short"),
    ],
)
def test_a_file_that_is_no_json(tmp_path: Path, text: str | bytes, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        _elements(tmp_path, text)
    assert "f.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_element_too_large_is_refused_before_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 1000)
    with pytest.raises(UserError, match="more than 1000 bytes"):
        _elements(tmp_path, '[{"a": "' + "x" * 5000 + '"}]', chunk_bytes=100)


@WRITES_ONE_FILE
@given(objects=OBJECTS, chunk_bytes=st.integers(1, 40), end=st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_lines_at_any_chunk_size(
    tmp_path: Path, objects: list[dict[str, Any]], chunk_bytes: int, end: str
) -> None:
    store = _store(tmp_path, end.join(json.dumps(one) for one in objects))
    assert [one for _, one in json_lines(store, "f.json", chunk_bytes=chunk_bytes)] == objects


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b"[1]", "a JSON object is expected"),
        (b'{"a": "\xff\xfe"}', "not JSON"),
        (b'{"a":' * 50_000, "nested too deeply|not JSON"),
        (b'{"a": "' + b"x" * 2**20 + b'"}', "a line of more than"),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [100_000, 2**23])
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, reason: str, chunk_bytes: int) -> None:
    store = _store(tmp_path, b'{"fine": 1}\n\n' + line + b"\n")
    with pytest.raises(UserError, match=reason) as caught:
        list(json_lines(store, "f.json", chunk_bytes=chunk_bytes))
    assert "/f.json:3: " in str(caught.value)


def test_fields_are_checked_strictly() -> None:
    assert field({"a": 1}, "a", int, "f:1") == 1
    with pytest.raises(UserError, match='f:1: "b" is missing'):
        field({"a": 1}, "b", int, "f:1")
    with pytest.raises(UserError, match='f:1: "a" must be int, not bool'):
        field({"a": True}, "a", int, "f:1")
    with pytest.raises(UserError, match='f:1: "a" must be str or int, not float'):
        field({"a": 1.5}, "a", (str, int), "f:1")


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "../x.png",
        "a/../../x",
        "a//b",
        "./a",
        "a/",
        "a\\..\\b",
        "s3://b/k",
        "a\0b",
        "a\nb",
        ".",
    ],
)
def test_hostile_keys_are_refused(key: str) -> None:
    with pytest.raises(UserError, match='f:1: "image" must be a plain path inside the data folder'):
        object_key(key, "image", "f:1")


@pytest.mark.parametrize("key", ["a.png", "images/a b.jpg", "images/été/..a.jpg", "a...b"])
def test_plain_keys_pass(key: str) -> None:
    assert object_key(key, "image", "f:1") == key


def test_repeated_labels_get_numbers() -> None:
    labels = LabelNames()
    assert [labels.name(one) for one in ("a", "b", "a", "a")] == ["a", "b", "a#2", "a#3"]


def test_labels_stay_one_of_a_kind_however_many_they_are() -> None:
    labels = LabelNames()
    firsts = [labels.name(f"label {number}") for number in range(5000)]
    assert firsts == [f"label {number}" for number in range(5000)]
    assert [labels.name(f"label {number}") for number in range(0, 5000, 7)] == [
        f"label {number}#2" for number in range(0, 5000, 7)
    ]
