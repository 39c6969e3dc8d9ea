"""Sprites: the vendored clip-art, rendered once a size and kept."""

import functools
import gzip
import hashlib
import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image

from pipeline.scenes.colours import HUES, MAJORITY, colour_share, recolour
from pipeline.scenes.nouns import VENDORED

SIZES = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # longest sides, in pixels, that are rendered
_LOOK = 96  # the size at which a drawing is looked at: its box, its fill, whether a colour takes


@dataclass(frozen=True, slots=True)
class Drawing:
    """What is known of a drawing before it is placed. `box` is left, top, width, height in SVG units."""

    box: tuple[float, float, float, float]
    fill: float  # opaque share of the square around it


@functools.cache
def _style(style: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(gzip.decompress((VENDORED / f"{style}.json.gz").read_bytes()))
    return body


@functools.cache
def clipart_digest() -> str:
    """A digest of all vendored data: it changes whenever a drawing or a noun does."""
    digest = hashlib.sha256()
    for path in sorted(VENDORED.glob("*.json*")):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _render(style: str, noun: str, box: tuple[float, float, float, float], side: int) -> NDArray[np.uint8]:
    """A part of a drawing as `H,W,4` with straight alpha, its longer side `side` pixels."""
    left, top, width, height = box
    scale = side / max(width, height)
    across, down = max(1, round(width * scale)), max(1, round(height * scale))
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{across}" height="{down}" '
        f'preserveAspectRatio="none">{_style(style)["pictures"][noun]["body"]}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


@functools.cache
def look(style: str, noun: str) -> Drawing | None:
    """The drawing's tight box and fill, or None where it renders empty (and must not be used)."""
    left, top, width, height = _style(style)["pictures"][noun]["box"]
    alpha = _render(style, noun, (left, top, width, height), _LOOK)[..., 3]
    opaque = alpha > 127
    if not opaque.any():
        return None
    unit = max(width, height) / _LOOK
    rows, columns = np.flatnonzero((alpha > 8).any(1)), np.flatnonzero((alpha > 8).any(0))
    across, down = columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
    box = (left + columns[0] * unit, top + rows[0] * unit, across * unit, down * unit)
    box_floats = (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
    return Drawing(box=box_floats, fill=float(opaque.sum()) / float(max(across, down)) ** 2)


@functools.lru_cache(maxsize=4096)
def sprite(style: str, noun: str, size: int, colour: str | None = None) -> Image.Image:
    """The drawing trimmed to its box, its longer side `size` pixels, in Pillow's premultiplied `RGBa`.

    Cached a (style, noun, size, colour); treat it as read-only. `size` is one of `SIZES`.
    """
    drawing = look(style, noun)
    if drawing is None:
        raise ValueError(f"{style} {noun} renders empty: ask look() before")
    rgba = _render(style, noun, drawing.box, size)
    if colour is not None:
        rgba = recolour(rgba, colour)
    return Image.fromarray(rgba).convert("RGBa")


@functools.cache
def tints(style: str, noun: str) -> tuple[str, ...]:
    """The colours that the drawing can be given so that the colour's word is true of most of its pixels."""
    drawing = look(style, noun)
    if drawing is None:
        return ()
    rgba = _render(style, noun, drawing.box, _LOOK)
    return tuple(name for name in HUES if colour_share(recolour(rgba, name), name) >= MAJORITY)
