"""Decoding photos and masks: every mode upright and in RGB, every bad file told as a fault of the data."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from ldznet.errors import DataFault
from ldznet.images import decode_image, decode_mask, image_size, to_tensor

RED, GREEN, WHITE = (254, 0, 0), (0, 255, 1), (255, 255, 255)


def _encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _gradient(width: int = 24, height: int = 16) -> Image.Image:
    ramp = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    return Image.fromarray(ramp.astype(np.uint8))


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_each_format_is_read(form: str) -> None:
    image = _gradient()
    decoded = decode_image(_encoded(image, form))
    assert (decoded.mode, decoded.size) == ("RGB", (24, 16))
    assert np.abs(np.asarray(decoded, dtype=int) - np.asarray(image)).mean() < 6


# What each orientation's stored image must be turned by: (quarter turns to the left, then mirrored).
UPRIGHT = {
    1: (0, False),
    2: (0, True),
    3: (2, False),
    4: (2, True),
    5: (3, True),
    6: (3, False),
    7: (1, True),
    8: (1, False),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(form: str, orientation: int) -> None:
    stored = _gradient()
    turns, mirrored = UPRIGHT[orientation]
    upright = np.rot90(np.asarray(stored), turns)
    upright = upright[:, ::-1] if mirrored else upright
    data = _encoded(stored, form, exif=_exif(orientation))
    decoded = np.asarray(decode_image(data))
    np.testing.assert_array_equal(decoded, upright)
    assert image_size(data) == (decoded.shape[1], decoded.shape[0])


def test_damaged_exif_is_as_none() -> None:
    data = _encoded(_gradient(), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert image_size(data) == (24, 16)
    np.testing.assert_array_equal(np.asarray(decode_image(data)), np.asarray(_gradient()))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "I;16"])
def test_a_plain_colour_survives_each_mode(mode: str) -> None:
    grey = Image.new("L", (9, 5), 255)
    image = (
        Image.fromarray(np.full((5, 9), 65535, np.uint16))
        if mode == "I;16"
        else grey.convert("RGB").convert(mode)
    )
    decoded = decode_image(_encoded(image, "TIFF" if mode == "CMYK" else "PNG"))
    assert set(decoded.get_flattened_data()) == {WHITE}


def test_sixteen_bits_are_scaled_and_not_cut() -> None:
    values = np.array([[0, 128, 257, 32768, 65535]], dtype=np.uint16)
    decoded = np.asarray(decode_image(_encoded(Image.fromarray(values))))
    np.testing.assert_array_equal(decoded[0, :, 0], [0, 0, 1, 128, 255])


def test_transparency_is_laid_on_white() -> None:
    image = Image.new("RGBA", (3, 1), (*RED, 255))
    image.putpixel((1, 0), (*RED, 0))
    assert list(decode_image(_encoded(image)).get_flattened_data()) == [RED, WHITE, RED]
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *GREEN])
    palette.putpixel((1, 0), 1)
    assert list(decode_image(_encoded(palette, transparency=0)).get_flattened_data()) == [WHITE, GREEN]
    assert list(decode_image(_encoded(Image.new("LA", (1, 1), (0, 0)))).get_flattened_data()) == [WHITE]


def test_cmyk_jpeg_keeps_its_colours() -> None:
    decoded = decode_image(_encoded(Image.new("RGB", (16, 16), RED).convert("CMYK"), "JPEG"))
    assert np.abs(np.asarray(decoded, dtype=int) - RED).max() < 12


def test_a_bomb_is_refused_from_its_header() -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    for side in (9_000, 12_000, 60_000):  # above our limit, above Pillow's warning, above Pillow's error
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        for read in (decode_image, decode_mask, image_size):
            with pytest.raises(DataFault, match=r"bomb|pixels, more than"):
                read(bomb)


def test_the_pixel_limit_is_exact() -> None:
    data = _encoded(_gradient(24, 16))
    assert decode_image(data, max_pixels=24 * 16).size == (24, 16)
    with pytest.raises(DataFault, match="24 x 16 pixels, more than the 383 allowed"):
        decode_image(data, max_pixels=24 * 16 - 1)


@pytest.mark.parametrize("data", [b"", b"hello", b"GIF89a" + bytes(100), b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_other_files_are_no_images(data: bytes) -> None:
    with pytest.raises(DataFault, match=r"not an image file|is empty"):
        decode_image(data)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_a_cut_file_is_a_fault(form: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = _encoded(noise, form)
    for keep in (0.1, 0.5, 0.9):
        with pytest.raises(DataFault) as caught:
            decode_image(data[: int(len(data) * keep)])
        assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=150)
@given(
    form=st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF", "BMP"]),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_a_damaged_file_is_an_image_or_a_fault(form: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(
        _encoded(_gradient(), form, exif=_exif(6)) if form != "BMP" else _encoded(_gradient(), form)
    )
    for place, value in changes:
        data[place % len(data)] = value
    for read in (decode_image, decode_mask, image_size):
        with contextlib.suppress(DataFault):  # anything else fails the test
            read(bytes(data), max_pixels=1_000_000)


def test_mask_modes() -> None:
    wanted = np.zeros((4, 6), dtype=np.bool_)
    wanted[1:3, 2:5] = True
    ones = wanted.astype(np.uint8)
    assert np.array_equal(decode_mask(_encoded(Image.fromarray(wanted))), wanted)
    assert np.array_equal(decode_mask(_encoded(Image.fromarray(ones))), wanted)
    assert np.array_equal(decode_mask(_encoded(Image.fromarray(ones.astype(np.uint16) * 300))), wanted)
    palette = Image.fromarray(ones)
    palette.putpalette([0, 0, 0, 0, 0, 0])  # the index counts, not its colour
    assert np.array_equal(decode_mask(_encoded(palette)), wanted)
    colours = np.dstack([ones * 0, ones * 9, ones * 0, np.full_like(ones, 255)])
    assert np.array_equal(decode_mask(_encoded(Image.fromarray(colours))), wanted)


def test_to_tensor_range_and_layout() -> None:
    pixels = np.zeros((2, 3, 3), dtype=np.uint8)
    pixels[0, 2] = (255, 0, 51)
    tensor = to_tensor(Image.fromarray(pixels))
    assert (tuple(tensor.shape), tensor.dtype) == ((3, 2, 3), torch.float32)
    torch.testing.assert_close(tensor[:, 0, 2], torch.tensor([1.0, -1.0, -0.6]))
    torch.testing.assert_close(tensor, to_tensor(pixels))
