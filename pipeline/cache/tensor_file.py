"""A sample's tensors out of safetensors bytes: nothing is trusted, and only what is asked for is copied.

The format: 8 bytes of header length (little endian), a JSON header of `name: {dtype, shape, data_offsets}`, then the
data. `safetensors.torch.load` would take a copy of all bytes first, and another of each tensor.
"""

import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

_LENGTH_BYTES: Final = 8
_MOST_HEADER_BYTES: Final = 2**16  # 16 blocks with scales take 3 KB
_MOST_DIMENSIONS: Final = 8
_DTYPES: Final[dict[str, torch.dtype]] = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpan:
    """Where a tensor lies in the content that follows the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorLayout:
    """What a file is but for its content: files of one layout differ in their tensors' values alone."""

    header: bytes  # its length and the JSON
    spans: tuple[tuple[str, TensorSpan], ...]  # by name, in the order of the content, which they fill
    content_bytes: int

    @property
    def file_bytes(self) -> int:
        """Of the whole file."""
        return len(self.header) + self.content_bytes


def read_layout(data: bytes | memoryview) -> TensorLayout:
    """The layout of a file.

    Raises:
        ValueError: says what is wrong with the header.
    """
    header, content = _split(memoryview(data))
    spans = sorted(_parse_header(bytes(header[_LENGTH_BYTES:]), len(content)), key=lambda one: one[1].start)
    return TensorLayout(header=bytes(header), spans=tuple(spans), content_bytes=len(content))


def read_tensors(
    data: bytes | memoryview, *, wanted: Callable[[str], bool] | None = None
) -> dict[str, Tensor]:
    """The tensors by name, in name order, each in memory of its own: one copy, of the wanted ones alone.

    Memory is bounded by the bytes given, whatever the header claims.

    Args:
        data: the whole file.
        wanted: tells by name which tensors to read; None reads all.

    Raises:
        ValueError: says what is wrong with the header.
    """
    header, content = _split(memoryview(data))
    return {
        name: torch.frombuffer(bytearray(content[span.start : span.stop]), dtype=span.dtype).view(span.shape)
        for name, span in _parse_header(bytes(header[_LENGTH_BYTES:]), len(content))
        if wanted is None or wanted(name)
    }


def _split(view: memoryview) -> tuple[memoryview, memoryview]:
    """The header, with its length before it, and the content."""
    if len(view) < _LENGTH_BYTES:
        raise ValueError("safetensors: shorter than its header's length")
    size = int.from_bytes(view[:_LENGTH_BYTES], "little")
    if size > min(_MOST_HEADER_BYTES, len(view) - _LENGTH_BYTES):
        raise ValueError(f"safetensors: a header of {size} bytes in a file of {len(view)}")
    return view[: _LENGTH_BYTES + size], view[_LENGTH_BYTES + size :]


@functools.lru_cache(maxsize=64)  # the samples of a cache have one header in common
def _parse_header(header: bytes, content_bytes: int) -> tuple[tuple[str, TensorSpan], ...]:
    """Every tensor's span in the content, in name order, checked against the bytes that are there."""
    try:
        described = json.loads(str(header, "utf-8"), object_pairs_hook=_without_repeats)
    except RecursionError as error:
        raise ValueError("safetensors: the header is nested too deep") from error
    if not isinstance(described, dict):
        raise ValueError("safetensors: the header is no JSON object")  # noqa: TRY004 - the data is wrong
    described.pop("__metadata__", None)
    spans = {name: _parse_span(name, one) for name, one in described.items()}
    expected = 0
    for name, span in sorted(spans.items(), key=lambda item: item[1].start):
        if span.start != expected:
            raise ValueError(f"safetensors: {name!r} overlaps another tensor, or leaves a gap before it")
        expected = span.stop
    if expected != content_bytes:
        raise ValueError(f"safetensors: tensors of {expected} bytes in {content_bytes} bytes of content")
    return tuple(sorted(spans.items()))


def _parse_span(name: str, described: Any) -> TensorSpan:
    if not isinstance(described, dict) or set(described) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"safetensors: {name!r} is not described by dtype, shape and data_offsets")
    dtype = _DTYPES.get(described["dtype"]) if isinstance(described["dtype"], str) else None
    if dtype is None:
        raise ValueError(f"safetensors: {name!r} is of type {described['dtype']!r}, which no cache holds")
    shape, offsets = _naturals(described["shape"]), _naturals(described["data_offsets"])
    if shape is None or not 1 <= len(shape) <= _MOST_DIMENSIONS or 0 in shape:
        raise ValueError(f"safetensors: {name!r} has the shape {described['shape']!r}")
    if offsets is None or len(offsets) != 2:
        raise ValueError(f"safetensors: {name!r} has the offsets {described['data_offsets']!r}")
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"safetensors: {name!r} has other offsets than its shape and type need")
    return TensorSpan(dtype=dtype, shape=shape, start=offsets[0], stop=offsets[1])


def _naturals(value: Any) -> tuple[int, ...] | None:
    """A JSON list of whole numbers that fit a file; None for anything else."""
    if not isinstance(value, list):
        return None
    return tuple(value) if all(type(one) is int and 0 <= one < 2**63 for one in value) else None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("safetensors: a name is there twice in the header")
    return found
