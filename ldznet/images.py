"""Photos and masks as bytes -> upright RGB pixels, with everything a file can do wrong told in one line."""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from ldznet.errors import DataFault

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 2**26  # 8192 x 8192: every phone's and most cameras' photos, 200 MB as RGB

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
# What Pillow's parsers raise on damaged bytes. MemoryError is not among them: it is the machine's fault.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    struct.error,
    zlib.error,
)


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a photo as a person sees it: upright and in RGB.

    EXIF orientation is applied; greyscale, palette, CMYK and 16-bit pixels become 8-bit RGB; transparent
    pixels are laid on white. Embedded colour profiles are not applied.

    Args:
        data: a JPEG, PNG, WebP, BMP or TIFF file; of several frames the first counts.
        max_pixels: larger images are refused from their header, before any pixel is expanded.

    Returns:
        A Pillow image in mode RGB that no longer depends on `data`.

    Raises:
        DataFault: not an image of these formats, damaged, cut short, or too large.
    """
    with _damage_told():
        image = _open(data, max_pixels)
        image.load()
        return _finished(image)


def normalise_image(image: Image.Image, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image that somebody else opened, as `decode_image` gives it: upright, in RGB.

    Raises:
        DataFault: its file is damaged, or it is too large.
    """
    with _damage_told():
        _check_size(image, max_pixels)
        image.load()
        return _finished(image)


def decode_mask(data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.bool_]:
    """Decode a mask file, `H,W`: non-zero pixels are the phrase's, whatever the mode.

    Of a palette the index counts, of colours any channel but alpha. No EXIF orientation is applied.

    Raises:
        DataFault: not an image, damaged, cut short, or too large.
    """
    with _damage_told():
        image = _open(data, max_pixels)
        image.load()
        mask = np.empty((image.height, image.width), dtype=np.bool_)
        for top, bottom in _strips(image):
            pixels = np.asarray(image.crop((0, top, image.width, bottom)))
            if image.mode in {"LA", "La", "PA", "RGBA", "RGBa"}:
                pixels = pixels[..., :-1]
            mask[top:bottom] = pixels.any(axis=2) if pixels.ndim == 3 else pixels != 0  # h,W,C -> h,W
        return mask


def image_size(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height after EXIF rotation, that is of `decode_image(data)`, read from the header.

    Raises:
        DataFault: as `decode_image`, as far as a header tells.
    """
    with _damage_told():
        image = _open(data, max_pixels)
        width, height = image.size
        # Pillow gives a TIFF's size already turned.
        turned = image.format != "TIFF" and _orientation(image) in _TURNED
        return (height, width) if turned else (width, height)


def to_tensor(image: Image.Image | NDArray[np.uint8]) -> "Tensor":
    """RGB pixels `H,W,3` in 0..255 -> `3,H,W` float32 in [-1,1], as the first stage takes them."""
    import torch

    pixels = np.array(image, dtype=np.float32)  # a copy: torch shares the memory
    assert pixels.shape[2:] == (3,), f"H,W,3 expected, not {pixels.shape}"
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().div_(127.5).sub_(1.0)  # H,W,3 -> 3,H,W


@contextmanager
def _damage_told() -> Iterator[None]:
    """Pillow's many ways of saying that a file is bad, as one `DataFault`."""
    try:
        yield
    except DataFault:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataFault("the image is far too large: a decompression bomb") from error
    except UnidentifiedImageError as error:
        raise DataFault(f"not an image file ({', '.join(FORMATS)} are read)") from error
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataFault(f"damaged image file: {reason}") from error


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header only, and refuse by its size."""
    if not data:
        raise DataFault("the image file is empty")
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    _check_size(image, max_pixels)
    return image


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise DataFault(f"the image has {width} x {height} pixels, more than the {max_pixels} allowed")


def _finished(image: Image.Image) -> Image.Image:
    """Upright and in RGB, without the tags that tell to turn it: who gets it shall not turn it again."""
    result = _rgb(_upright(image))
    result.info = {}
    return result


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none or where the tags are damaged (as photo viewers do)."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (SyntaxError, ValueError, TypeError, LookupError, struct.error):
        return 1


def _upright(image: Image.Image) -> Image.Image:
    if image.format == "TIFF":  # Pillow has turned it while loading
        return image
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT:
        return _from_sixteen_bit(image)
    if image.mode == "F":
        raise DataFault("floating-point pixels have no agreed range: save the image with 8 or 16 bits")
    if image.has_transparency_data:
        result = Image.new("RGB", image.size)
        for top, bottom in _strips(image):
            pixels = image.crop((0, top, image.width, bottom)).convert("RGBA")
            white = Image.new("RGBA", pixels.size, (255, 255, 255, 255))
            result.paste(Image.alpha_composite(white, pixels).convert("RGB"), (0, top))
        return result
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _from_sixteen_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits -> RGB of 8, rounded. Colour of 16 bits Pillow reads as 8-bit RGB by itself."""
    grey = np.empty((image.height, image.width), dtype=np.uint8)
    for top, bottom in _strips(image):
        values = np.asarray(image.crop((0, top, image.width, bottom))).astype(np.int64)  # h,W
        if values.min() < 0 or values.max() > 65535:
            raise DataFault("32-bit pixels outside 0..65535: save the image with 8 or 16 bits")
        grey[top:bottom] = (values * 255 + 32767) // 65535
    return Image.fromarray(grey).convert("RGB")


def _strips(image: Image.Image) -> Iterator[tuple[int, int]]:
    """Rows from and to, about a million pixels each: what is made of a strip on the way takes little memory."""
    rows = max(1, 2**20 // image.width)
    return ((top, min(top + rows, image.height)) for top in range(0, image.height, rows))
