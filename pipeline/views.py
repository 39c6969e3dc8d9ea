"""Views: which part of a photo the networks see, and at what size."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from ldznet.config import Config
from pipeline.draws import draw_generator

PUBLISHED_TRIES = 50
PUBLISHED_FOREGROUND = 0.05  # of the crop's area


class ViewConfig(Config):
    """How photos become square network inputs.

    `squash`: the whole photo, aspect given up (CLIPSeg's protocol, so all evaluation). `shared`: seeded
    square crops of a photo that serve all its phrases, so latents are computed once a crop. `published`: one
    square crop a phrase, chosen by its mask as the authors did, so latents are computed once a phrase.
    """

    policy: Literal["squash", "shared", "published"] = "squash"
    size: int = Field(default=384, ge=64, le=4096, multiple_of=64)  # px, both sides of the network's input


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """A box in a photo's own pixels, and the side of the square it is resized to."""

    left: int  # px
    top: int  # px
    width: int  # px
    height: int  # px
    size: int  # px, of the output

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in the photo's pixels; right and bottom are outside."""
        return self.left, self.top, self.left + self.width, self.top + self.height


def squash_view(*, width: int, height: int, size: int) -> View:
    """The whole photo, its aspect given up (PAPER: Metrics, CLIPSeg's protocol)."""
    return View(left=0, top=0, width=width, height=height, size=size)


def shared_view(*, seed: int, image_id: str, draw: int, width: int, height: int, size: int) -> View:
    """The `draw`-th random square with the photo's short side: the same for all phrases about the photo."""
    slack = max(width, height) - min(width, height)
    offset = draw_generator("shared view", seed, image_id, draw).integers(0, slack, endpoint=True)
    return _square_view(int(offset), width=width, height=height, size=size)


def published_view(*, seed: int, sample_id: str, draw: int, mask: NDArray[np.bool_], size: int) -> View:
    """One random square with the photo's short side for a phrase, chosen by its mask.

    Of up to 50 random squares the first whose foreground is more than 5 % of its area; where none is, the
    (first) one with the most foreground (PAPER: Training, as published).

    Args:
        seed: of the whole experiment.
        sample_id: the phrase's id in the data set.
        draw: number of the draw.
        mask: the phrase's mask at the photo's own size, `H,W`.
        size: output side in px.
    """
    height, width = mask.shape
    side = min(width, height)
    slack = max(width, height) - side
    offsets = draw_generator("published view", seed, sample_id, draw).integers(
        0, slack, size=PUBLISHED_TRIES, endpoint=True
    )
    # A square with the short side moves along the long axis only, so sums along the short one say all.
    lines = np.count_nonzero(mask, axis=0 if width > height else 1)
    before = np.concatenate(([0], np.cumsum(lines)))
    foreground = before[offsets + side] - before[offsets]
    enough = foreground > PUBLISHED_FOREGROUND * side * side
    chosen = int(enough.argmax()) if enough.any() else int(foreground.argmax())
    return _square_view(int(offsets[chosen]), width=width, height=height, size=size)


def apply_to_image(image: Image.Image, view: View) -> NDArray[np.uint8]:
    """The view of an RGB photo, `size,size,3`: cropped, then resized bilinearly (Pillow's, antialiased)."""
    _assert_inside(view, width=image.width, height=image.height)
    resized = image.crop(view.box).resize((view.size, view.size), Image.Resampling.BILINEAR)
    return np.array(resized, dtype=np.uint8)


def apply_to_mask(mask: NDArray[np.bool_], view: View) -> NDArray[np.bool_]:
    """The view of a mask `H,W`, `size,size`: for each output pixel the mask's pixel under its centre."""
    _assert_inside(view, width=mask.shape[1], height=mask.shape[0])
    centres = 2 * np.arange(view.size) + 1  # in half output pixels
    rows = view.top + centres * view.height // (2 * view.size)
    columns = view.left + centres * view.width // (2 * view.size)
    return mask[np.ix_(rows, columns)]


def _square_view(offset: int, *, width: int, height: int, size: int) -> View:
    """The square with the short side, `offset` px along the long one."""
    side = min(width, height)
    left, top = (offset, 0) if width > height else (0, offset)
    return View(left=left, top=top, width=side, height=side, size=size)


def _assert_inside(view: View, *, width: int, height: int) -> None:
    left, top, right, bottom = view.box
    inside = 0 <= left < right <= width and 0 <= top < bottom <= height
    assert inside, f"{view} is not inside {width} x {height}"
