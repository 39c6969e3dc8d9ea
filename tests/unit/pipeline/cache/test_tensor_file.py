"""Tensors out of safetensors bytes: as the library reads them, and nothing but sound headers."""

import json
import struct
import tracemalloc
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from pipeline.cache.tensor_file import read_tensors

TENSORS = {
    "latents": torch.randn(4, 2, 2).half(),
    "block_6": torch.arange(-6, 6, dtype=torch.int8).view(3, 2, 2),
    "block_7": torch.randn(3, 1, 1).to(torch.float8_e4m3fn),
    "block_8": torch.randn(2, 2, 2).bfloat16(),
    "context": torch.randn(7, 3),
}


def file_of(header: Any, content: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def span(start: Any = 0, stop: Any = 4, *, shape: Any = (1,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_reads_what_the_library_reads() -> None:
    data = save(TENSORS, metadata={"made": "here"})
    ours, theirs = read_tensors(data), load(data)
    assert list(ours) == sorted(TENSORS)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and ours[name].shape == tensor.shape
        assert torch.equal(ours[name].view(torch.uint8), tensor.view(torch.uint8))


def test_tensors_own_their_memory_and_only_the_wanted_are_read() -> None:
    data = bytearray(save(TENSORS))
    read = read_tensors(memoryview(data), wanted=lambda name: name == "block_6")
    assert list(read) == ["block_6"]
    data[-200:] = bytes(200)
    read["block_6"] += 0  # writable
    assert torch.equal(read["block_6"], TENSORS["block_6"])
    content = save({"asked": torch.zeros(10), "not": torch.zeros(2**20)})
    tracemalloc.start()
    read_tensors(content, wanted=lambda name: name == "asked")
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


HOSTILE = {
    "empty": (b"", "shorter than"),
    "no header": (b"\1\0\0\0\0\0\0", "shorter than"),
    "header beyond the end": (struct.pack("<Q", 2**63) + b"{}", "header of 9223372036854775808 bytes"),
    "header too long": (file_of(b"{" + b" " * 2**17 + b"}"), "header of 131074 bytes"),
    "not UTF-8": (file_of(b'{"\xff": 1}'), "codec"),
    "not JSON": (file_of(b"pickle"), "Expecting value"),
    "a number of many digits": (file_of(b'{"a": ' + b"9" * 60_000 + b"}"), "Exceeds the limit"),
    "nested": (file_of(b"[" * 60_000), "nested too deep"),
    "a list": (file_of([]), "no JSON object"),
    "a name twice": (
        file_of(b'{"a": %s, "a": %s}' % ((json.dumps(span()).encode(),) * 2), bytes(4)),
        "there twice",
    ),
    "described by a list": (file_of({"a": [1]}), "not described by"),
    "a field too many": (file_of({"a": {**span(), "code": "x"}}, bytes(4)), "not described by"),
    "unknown type": (file_of({"a": span(dtype="F64", stop=8)}, bytes(8)), "'F64', which no cache holds"),
    "type that is no text": (file_of({"a": span(dtype={"F32": 1})}, bytes(4)), "which no cache holds"),
    "negative side": (file_of({"a": span(shape=[-1, -1])}, bytes(4)), "has the shape"),
    "side of zero": (file_of({"a": span(0, 0, shape=[0, 2**62])}), "has the shape"),
    "scalar": (file_of({"a": span(shape=[])}, bytes(4)), "has the shape"),
    "side that is true": (file_of({"a": span(shape=[True])}, bytes(4)), "has the shape"),
    "side with a fraction": (file_of({"a": span(shape=[1.0])}, bytes(4)), "has the shape"),
    "shape of many dimensions": (file_of({"a": span(shape=[1] * 9)}, bytes(4)), "has the shape"),
    "shape that overflows": (file_of({"a": span(shape=[2**62, 2**62])}, bytes(4)), "other offsets"),
    "huge tensor": (file_of({"a": span(0, 2**42, shape=[2**40])}, bytes(4)), "in 4 bytes of content"),
    "turned offsets": (file_of({"a": span(4, 0)}, bytes(4)), "other offsets"),
    "negative offset": (file_of({"a": span(-4, 0)}, bytes(4)), "has the offsets"),
    "one offset": (file_of({"a": {**span(), "data_offsets": [0]}}, bytes(4)), "has the offsets"),
    "overlap": (file_of({"a": span(), "b": span(2, 6)}, bytes(8)), "'b' overlaps"),
    "the same bytes twice": (file_of({"a": span(), "b": span()}, bytes(8)), "overlaps"),
    "gap": (file_of({"a": span(), "b": span(8, 12)}, bytes(12)), "leaves a gap"),
    "bytes of no tensor": (file_of({"a": span()}, bytes(8)), "tensors of 4 bytes in 8 bytes"),
    "cut short": (file_of({"a": span()}, bytes(3)), "tensors of 4 bytes in 3 bytes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused_in_little_memory(name: str) -> None:
    data, reason = HOSTILE[name]
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=reason):
            read_tensors(data)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


@given(st.data())
def test_damaged_bytes_are_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    whole = bytearray(save(TENSORS))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    try:
        read = read_tensors(bytes(whole[: cut if data.draw(st.booleans()) else len(whole)]))
    except ValueError:
        return
    assert sum(tensor.nbytes for tensor in read.values()) == sum(t.nbytes for t in TENSORS.values())
