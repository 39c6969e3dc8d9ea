"""One scene: composed from (configuration, split, index) alone, with every object's exact visible pixels."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ldznet.errors import UserError
from pipeline.scenes.backgrounds import draw_background
from pipeline.scenes.clipart import SIZES, sprite
from pipeline.scenes.config import SPLITS, ScenesConfig, Split, holds_out_photos
from pipeline.scenes.layout import Placement, plan_layout
from pipeline.scenes.phrases import Phrase, SceneObject, caption_scene, phrase_scene

_ATTEMPTS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """An image, what it holds, phrases with their masks, and a caption."""

    image: NDArray[np.uint8]  # H,W,3
    objects: tuple[SceneObject, ...]  # back to front; their masks are disjoint
    phrases: tuple[Phrase, ...]
    caption: str
    style: str


@dataclass(frozen=True, slots=True)
class _Patch:
    """A drawn object's premultiplied pixels where it lies on the canvas, and its area before any cut."""

    place: Placement
    rows: slice
    columns: slice
    rgba: NDArray[np.float32]  # h,w,4 in [0,1], premultiplied
    whole_area: int


def _draw(place: Placement, size: int) -> _Patch:
    """The sprite scaled, mirrored and turned in one resampling, cut to the canvas."""
    bucket = next((side for side in SIZES if side >= place.side), SIZES[-1])
    source = sprite(place.style, place.noun.name, bucket, place.colour)
    scale = place.side / max(source.size)
    cos, sin = math.cos(math.radians(place.angle)), math.sin(math.radians(place.angle))
    width, height = source.width * scale, source.height * scale
    across = math.ceil(abs(width * cos) + abs(height * sin)) + 2
    down = math.ceil(abs(width * sin) + abs(height * cos)) + 2
    left, top = round(place.x - across / 2), round(place.y - down / 2)
    mirror = -1 if place.flipped else 1
    # Output pixel -> source pixel: turn back, unscale, mirror, about both centres.
    a, b = mirror * cos / scale, -mirror * sin / scale
    d, e = sin / scale, cos / scale
    c = source.width / 2 - a * across / 2 - b * down / 2
    f = source.height / 2 - d * across / 2 - e * down / 2
    turned = source.transform(
        (across, down), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR
    )
    rgba = np.asarray(turned, dtype=np.float32) / np.float32(255)
    whole_area = int((rgba[..., 3] > 0.5).sum())
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = max(min(left + across, size), x0), max(min(top + down, size), y0)
    cut = rgba[y0 - top : y1 - top, x0 - left : x1 - left]
    return _Patch(place, slice(y0, y1), slice(x0, x1), cut, whole_area)


def _visible(patches: Sequence[_Patch], size: int) -> list[NDArray[np.bool_]]:
    """The pixels of which each object makes more than half, everything in front of it counted: disjoint."""
    through = np.ones((size, size), dtype=np.float32)  # light that passes all objects in front
    masks = []
    for patch in reversed(patches):
        window = through[patch.rows, patch.columns]
        alpha = patch.rgba[..., 3]
        mask = np.zeros((size, size), dtype=np.bool_)
        mask[patch.rows, patch.columns] = alpha * window > 0.5
        masks.append(mask)
        window *= 1 - alpha
    return masks[::-1]


def _keep_visible(
    patches: list[_Patch], config: ScenesConfig
) -> tuple[list[_Patch], list[NDArray[np.bool_]]]:
    """Leave out, worst first, what is hidden too far or too small, until everything left can be seen."""
    least = config.min_area * config.size**2
    while patches:
        masks = _visible(patches, config.size)
        areas = [int(np.count_nonzero(mask)) for mask in masks]
        shares = [
            0.0 if area < least else area / max(patch.whole_area, 1)
            for area, patch in zip(areas, patches, strict=True)
        ]
        worst = int(np.argmin(shares))
        if shares[worst] >= config.min_visible:
            return patches, masks
        patches = [*patches[:worst], *patches[worst + 1 :]]
    return [], []


def _shade(canvas: NDArray[np.float32], patch: _Patch, reach: int) -> None:
    """Darken the canvas below and right of an object, softly. In place."""
    size = len(canvas)
    top, left = max(patch.rows.start - reach, 0), max(patch.columns.start - reach, 0)
    bottom, right = min(patch.rows.stop + 2 * reach, size), min(patch.columns.stop + 2 * reach, size)
    alpha = np.zeros((bottom - top, right - left), dtype=np.uint8)
    y, x = patch.rows.start - top + reach // 2, patch.columns.start - left + reach // 3
    cast = np.rint(patch.rgba[..., 3] * 90).astype(np.uint8)[: len(alpha) - y, : alpha.shape[1] - x]
    alpha[y : y + cast.shape[0], x : x + cast.shape[1]] = cast
    soft = np.asarray(Image.fromarray(alpha).filter(ImageFilter.BoxBlur(reach / 2)), dtype=np.float32) / 255
    canvas[top:bottom, left:right] *= 1 - soft[..., None]


def _paint(background: NDArray[np.uint8], patches: Sequence[_Patch], *, shadows: bool) -> NDArray[np.uint8]:
    canvas = background.astype(np.float32)
    reach = max(2, len(canvas) // 40)
    for patch in patches:
        if shadows:
            _shade(canvas, patch, reach)
        window = canvas[patch.rows, patch.columns]
        window *= 1 - patch.rgba[..., 3:]
        window += patch.rgba[..., :3] * 255
    return np.rint(np.clip(canvas, 0, 255)).astype(np.uint8)


@functools.cache
def _axis(size: int) -> NDArray[np.float64]:
    axis: NDArray[np.float64] = (np.arange(size) + 0.5) / size
    return axis


def _object(patch: _Patch, mask: NDArray[np.bool_]) -> SceneObject:
    axis = _axis(len(mask))
    rows, columns = mask.sum(1), mask.sum(0)
    area = int(rows.sum())
    return SceneObject(
        noun=patch.place.noun,
        colour=patch.place.colour,
        mask=mask,
        whole_area=patch.whole_area,
        visible_area=area,
        x=float(columns @ axis) / area,
        y=float(rows @ axis) / area,
    )


def compose_scene(config: ScenesConfig, *, split: Split, index: int) -> Scene:
    """The scene number `index` of a split: always the same one, in whatever process and order.

    Objects are drawn back to front with true alpha; a visible mask is an object's own pixels less those of
    the objects in front. An object of which less than `min_visible` can be seen is left out of the scene.

    Args:
        config: The data set.
        split: Its split, which decides styles, nouns and photos.
        index: 0 or more; not bound by `config.counts`, so that a trainer may draw for ever.

    Raises:
        UserError: what is asked for cannot be composed, such as phrases that none of its scenes allows.
    """
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng([config.seed, SPLITS.index(split), index, attempt])
        background = draw_background(
            rng, size=config.size, photos=config.photos, held_out=holds_out_photos(split)
        )
        layout = plan_layout(rng, config, split=split, blocked=background.shows)
        shadows = bool(rng.random() < config.shadows)
        patches, masks = _keep_visible([_draw(place, config.size) for place in layout], config)
        if len(patches) < config.min_objects:
            continue
        objects = tuple(_object(patch, mask) for patch, mask in zip(patches, masks, strict=True))
        phrases = phrase_scene(rng, config, objects)
        if not phrases:
            continue
        return Scene(
            image=_paint(background.pixels, patches, shadows=shadows),
            objects=objects,
            phrases=tuple(phrases),
            caption=caption_scene(rng, objects, background.words),
            style=layout[0].style,
        )
    raise UserError(
        f"scenes: no scene of the split {split} came out right in {_ATTEMPTS} attempts: ask for fewer objects "
        f"(min_objects={config.min_objects}), more kinds of phrases (phrase_kinds={','.join(config.phrase_kinds)}), "
        f"or less of each to be seen (min_visible={config.min_visible:g}, min_area={config.min_area:g})"
    )
