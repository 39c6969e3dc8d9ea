"""Masks read from PNG without Pillow: the same masks, and everything unusual left to Pillow."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from PIL import Image

from pipeline.cache.entry import decode_png, encode_png
from pipeline.cache.mask_png import read_mask_png

MOST = 1 << 20
masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40))


def blob(height: int = 24, width: int = 37) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:height, :width]
    return np.asarray((rows - 11) ** 2 + (columns - 20) ** 2 < 70, np.bool_)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(rows: bytes, *, width: int, height: int, kind: tuple[int, ...] = (1, 0, 0, 0, 0)) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, *kind)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@given(mask=masks)
def test_what_shards_hold_is_read_as_pillow_reads_it(mask: NDArray[np.bool_]) -> None:
    read = read_mask_png(memoryview(encode_png(mask)), most_pixels=MOST)
    assert read is not None
    assert read.dtype == np.bool_ and read.flags.writeable
    assert np.array_equal(read, mask)
    assert set(read.view(np.uint8).ravel().tolist()) <= {0, 1}


@given(mask=masks)
def test_pillow_reads_them_too(mask: NDArray[np.bool_]) -> None:
    with Image.open(io.BytesIO(encode_png(mask))) as picture:
        assert picture.mode == "1"
        assert np.array_equal(np.array(picture), mask)


@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_is_never_another_mask(place: int, bit: int) -> None:
    data = bytearray(encode_png(blob()))
    data[place % len(data)] ^= 1 << bit
    assert read_mask_png(bytes(data), most_pixels=MOST) is None


@given(size=st.integers(0, 10**6))
def test_a_cut_file_is_no_mask(size: int) -> None:
    data = encode_png(blob())
    assert read_mask_png(data[: size % len(data)], most_pixels=MOST) is None


def test_other_pictures_are_left_to_pillow() -> None:
    grey = io.BytesIO()
    Image.fromarray(blob().astype(np.uint8) * 255).save(grey, format="PNG")
    told = io.BytesIO()
    Image.fromarray(blob()).save(told, format="PNG", dpi=(72, 72))
    for data in (grey.getvalue(), told.getvalue(), encode_png(np.zeros((4, 4, 3), np.uint8)), b"", b"no PNG"):
        assert read_mask_png(data, most_pixels=MOST) is None
    assert np.array_equal(decode_png(told.getvalue(), mode="1"), blob())


def test_filtered_rows_are_left_to_pillow() -> None:
    # Each row of bytes less the byte before: filter 1.
    data = png(b"".join(b"\x01\xf0\x0f" for _ in range(3)), width=16, height=3)
    assert read_mask_png(data, most_pixels=MOST) is None
    assert decode_png(data, mode="1").tolist() == [[True] * 4 + [False] * 4 + [True] * 8] * 3


@pytest.mark.parametrize("rows", [2, 4])
def test_fewer_or_more_rows_than_the_header_says_are_no_mask(rows: int) -> None:
    assert read_mask_png(png(b"\0\xff" * 3, width=8, height=3), most_pixels=MOST) is not None
    assert read_mask_png(png(b"\0\xff" * rows, width=8, height=3), most_pixels=MOST) is None


def test_what_is_larger_than_any_view_is_not_unpacked() -> None:
    assert read_mask_png(encode_png(np.ones((65, 64), bool)), most_pixels=64 * 64) is None
    bomb = png(b"\0" * 10**7, width=8, height=3)
    assert read_mask_png(bomb, most_pixels=MOST) is None
