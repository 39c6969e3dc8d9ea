"""Horizontal flips of views: photo and mask together, before the photo is encoded."""

import re
from dataclasses import replace
from typing import Final

import numpy as np

from pipeline.draws import draw_generator
from pipeline.precompute.preparation import Prepared

_SIDED: Final = re.compile(r"\b(left|right)(most|hand|ward|wards|er)?\b", re.IGNORECASE)


def flip_half(one: Prepared, *, seed: int) -> Prepared:
    """Half of all views the other way round, by a draw of (seed, view, draw).

    A view is flipped for all its phrases, so that its latents are computed once; but a phrase that speaks of left or
    right keeps the photo as it is, because it would be wrong of the other.
    """
    draw = draw_generator("flip", seed, *one.view_key, one.member.draw)
    if draw.integers(2) == 0 or _SIDED.search(one.member.sample.phrase):
        return one
    return replace(
        one,
        view_key=(*one.view_key, "flipped"),
        pixels=np.ascontiguousarray(one.pixels[:, ::-1]),
        mask=np.ascontiguousarray(one.mask[:, ::-1]),
    )
