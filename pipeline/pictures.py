"""Pictures of masks and curves, for reports and trackers, in one palette that reads on light and dark pages."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Colour = tuple[int, int, int]
Mask = NDArray[np.bool_]

# Okabe and Ito's colours: told apart by colour-blind readers, and dark and light enough for either background.
TRUTH: Colour = (0, 158, 115)
PREDICTION: Colour = (230, 97, 0)
SERIES: tuple[Colour, ...] = (
    (42, 120, 214), (230, 97, 0), (0, 158, 115), (190, 92, 155), (196, 138, 0), (86, 160, 211),
)  # fmt: skip
_GREY = "#7c8594"
_INK: Colour = (28, 32, 40)
_PAPER: Colour = (255, 255, 255)
_DIMMED = 0.55  # of the photo's brightness, outside the mask


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One line of a chart."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]


def overlay_mask(
    photo: Image.Image,
    mask: Mask,
    *,
    colour: Colour = PREDICTION,
    opacity: float = 0.5,
    truth: Mask | None = None,
) -> Image.Image:
    """The photo with a mask on it: tinted inside and outlined, dimmed outside.

    Args:
        photo: Any mode and size.
        mask: `h,w`; scaled to the photo, nearest.
        colour: Of the tint and the outline.
        opacity: Of the tint, 0..1.
        truth: `h,w`; drawn as a thin white outline, to compare with.

    Returns:
        RGB, the photo's size.
    """
    pixels = np.asarray(photo.convert("RGB"), dtype=np.float32)  # H,W,3
    inside = _scaled(mask, photo.size)
    tint = np.asarray(colour, dtype=np.float32)
    shown = np.where(inside[..., None], pixels * (1 - opacity) + tint * opacity, pixels * _DIMMED)
    thick = max(1, round(min(photo.size) / 160))
    shown[_outline(inside, thick)] = tint
    if truth is not None:
        shown[_outline(_scaled(truth, photo.size), max(1, thick // 2))] = 255
    return Image.fromarray(shown.round().clip(0, 255).astype(np.uint8))


def overlay_heat(photo: Image.Image, values: NDArray[np.floating], *, opacity: float = 0.65) -> Image.Image:
    """The photo in grey under a heat map.

    Args:
        photo: Any mode and size.
        values: `h,w`; the smallest is cold, the largest hot.
        opacity: Of the map, 0..1.
    """
    from matplotlib import colormaps

    field = np.asarray(values, dtype=np.float32)
    spread = float(field.max() - field.min())
    field = (field - field.min()) / spread if spread > 0 else np.zeros_like(field)
    scaled = Image.fromarray(field).resize(photo.size, Image.Resampling.BILINEAR)
    heat = colormaps["inferno"](np.asarray(scaled))[..., :3] * 255  # H,W,3
    grey = np.asarray(photo.convert("L").convert("RGB"), dtype=np.float32)
    return Image.fromarray((grey * (1 - opacity) + heat * opacity).round().astype(np.uint8))


def side_by_side(
    panels: Sequence[tuple[str, Image.Image]], *, title: str | None = None, height: int = 256
) -> Image.Image:
    """Pictures in a row at one height (px), each under its caption, as one RGB picture on white."""
    assert panels, "a picture of nothing"
    gap, line = max(6, height // 32), max(14, height // 14)
    font = ImageFont.load_default(size=round(line * 0.75))
    scaled = [
        (name, image.convert("RGB").resize((max(1, round(image.width * height / image.height)), height)))
        for name, image in panels
    ]
    top = gap + line + (line + gap // 2 if title else 0)
    width = sum(image.width for _, image in scaled) + gap * (len(scaled) + 1)
    canvas = Image.new("RGB", (width, top + height + gap), _PAPER)
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((gap, gap // 2), _fitting(title, font, width - 2 * gap), fill=_INK, font=font)
    left = gap
    for name, image in scaled:
        draw.text((left, top - line), _fitting(name, font, image.width), fill=_GREY, font=font)
        canvas.paste(image, (left, top))
        left += image.width + gap
    return canvas


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures under one another on white, left-aligned: one sheet of several rows."""
    assert pictures, "a sheet of nothing"
    width, height = max(one.width for one in pictures), sum(one.height for one in pictures)
    sheet = Image.new("RGB", (width, height), _PAPER)
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def plot_curves(
    curves: Sequence[Curve], *, y_label: str, x_label: str = "step", log_scale: bool = False
) -> bytes:
    """Curves as a PNG with a transparent ground: the raw values faint, a moving average over them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.6), dpi=150, layout="constrained", facecolor="none")
    FigureCanvasAgg(figure)
    axes: Axes = figure.add_subplot(facecolor="none")
    for number, curve in enumerate(curves):
        colour = hex_colour(SERIES[number % len(SERIES)])
        axes.plot(curve.steps, curve.values, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(curve.steps, smoothed(curve.values), color=colour, linewidth=1.8, label=curve.name)
    dress_axes(axes, x_label=x_label, y_label=y_label)
    if log_scale:
        axes.set_yscale("log")
    if len(curves) > 1:
        axes.legend(frameon=False, labelcolor=_GREY)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=True)
    return buffer.getvalue()


def dress_axes(axes: "Axes", *, x_label: str, y_label: str = "", title: str = "") -> None:
    """Grey lines and letters, to be read on a light and on a dark page."""
    axes.set_xlabel(x_label, color=_GREY)
    axes.set_ylabel(y_label, color=_GREY)
    axes.set_title(title, color=_GREY, fontsize=11)
    axes.tick_params(colors=_GREY)
    axes.grid(visible=True, color=_GREY, alpha=0.2, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(_GREY)


def smoothed(values: Sequence[float]) -> list[float]:
    """A centred moving average over about a thirtieth of the values, never looking past either end."""
    array = np.asarray(values, dtype=np.float64)
    reach = len(array) // 60
    sums = np.concatenate([[0.0], np.cumsum(array)])
    place = np.arange(len(array))
    # The same reach on both sides, so that a trend is not bent at the ends.
    near = np.minimum(np.minimum(place, len(array) - 1 - place), reach)
    averaged: list[float] = ((sums[place + near + 1] - sums[place - near]) / (2 * near + 1)).tolist()
    return averaged


def png_bytes(image: Image.Image) -> bytes:
    """The picture as a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def hex_colour(colour: Colour) -> str:
    """`#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _scaled(mask: Mask, size: tuple[int, int]) -> Mask:
    if mask.shape == (size[1], size[0]):
        return mask
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))


def _outline(mask: Mask, thick: int) -> Mask:
    """Pixels of the mask within `thick` px of its edge. The picture's border is no edge."""
    kept = mask
    for _ in range(thick):
        padded = np.pad(kept, 1, mode="edge")
        kept = kept & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~kept


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
