"""Named colours: recolouring a sprite so that a colour word is true of it, and checking that it is."""

import numpy as np
from numpy.typing import NDArray

HUES = {  # degrees; a colour's word is true within TOLERANCE of its hue
    "red": 0.0,
    "orange": 30.0,
    "yellow": 52.0,
    "green": 125.0,
    "blue": 215.0,
    "purple": 275.0,
    "pink": 325.0,
}
TOLERANCE = 13.0  # degrees; less than half the gap between any two
MAJORITY = 0.55  # share of an object's pixels that must bear the colour its phrase says
_VIVID = 0.35  # saturation and value from which a pixel has a hue worth naming


def hue_saturation_value(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Hue in degrees, saturation and value in [0,1]. `...,3 uint8 -> ...,3 float32`."""
    colour = rgb.astype(np.float32) / 255
    value, low = colour.max(-1), colour.min(-1)
    chroma = value - low
    safe = np.where(chroma > 0, chroma, 1)
    red, green, blue = np.moveaxis(colour, -1, 0)
    hue = np.where(
        value == red,
        (green - blue) / safe % 6,
        np.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    saturation = np.where(value > 0, chroma / np.where(value > 0, value, 1), 0)
    return np.stack([np.where(chroma > 0, hue * 60, 0), saturation, value], axis=-1).astype(np.float32)


def to_rgb(hsv: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The inverse of `hue_saturation_value`. `...,3 float32 -> ...,3 uint8`."""
    hue, saturation, value = np.moveaxis(hsv, -1, 0)
    offset = np.array([5, 3, 1], dtype=np.float32)
    k = (offset + hue[..., None] / 60) % 6
    ramp = np.clip(np.minimum(k, 4 - k), 0, 1)
    colour = value[..., None] * (1 - saturation[..., None] * ramp)
    return np.rint(colour * 255).astype(np.uint8)


def hue_distance(hue: NDArray[np.float32], centre: float) -> NDArray[np.float32]:
    """Degrees between hues on the circle, 0 to 180."""
    return np.abs((hue - centre + 180) % 360 - 180)


def colour_share(rgba: NDArray[np.uint8], name: str) -> float:
    """The share of a sprite's opaque pixels of which the colour word is true. `H,W,4`, straight alpha."""
    opaque = rgba[..., 3] > 127
    hue, saturation, value = np.moveaxis(hue_saturation_value(rgba[..., :3][opaque]), -1, 0)
    named = (hue_distance(hue, HUES[name]) <= TOLERANCE) & (saturation > _VIVID) & (value > _VIVID)
    return float(named.mean()) if named.size else 0.0


def recolour(rgba: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """The sprite with its dominant hue moved to a named one; outlines and other hues keep theirs.

    Shading survives: values are scaled so that the recoloured part is bright enough to bear its name.
    """
    hsv = hue_saturation_value(rgba[..., :3])
    hue, saturation, value = np.moveaxis(hsv, -1, 0)
    coloured = (rgba[..., 3] > 127) & (saturation > 0.2) & (value > 0.2)
    if not coloured.any():
        return rgba
    counts, edges = np.histogram(hue[coloured], bins=24, range=(0, 360), weights=saturation[coloured])
    dominant = float(edges[counts.argmax()]) + 7.5
    part = (hue_distance(hue, dominant) < 45) & (saturation > 0.15)
    if not (part & coloured).any():
        return rgba
    brighter = 0.85 / float(np.median(value[part & coloured]))
    fuller = 0.8 / float(np.median(saturation[part & coloured]))
    spread = ((hue - dominant + 180) % 360 - 180) * 0.2
    out = hsv.copy()
    out[..., 0] = np.where(part, (HUES[name] + spread) % 360, hue)
    out[..., 1] = np.where(part, np.clip(saturation * fuller, 0, 1), saturation)
    out[..., 2] = np.where(part, np.clip(value * brighter, 0, 1), value)
    return np.dstack([to_rgb(out), rgba[..., 3]])
