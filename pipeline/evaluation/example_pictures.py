"""Examples of a network's masks as one picture: photo, truth and prediction side by side, a row a phrase."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from pipeline.evaluation.scoring import Example
from pipeline.pictures import TRUTH, overlay_mask, side_by_side, stacked


def example_picture(examples: Sequence[Example], *, threshold: float) -> Image.Image:
    """One row an example. Where the cache keeps no pixels, masks lie on grey."""
    rows = []
    for example in examples:
        photo = example_photo(example)
        shown = [
            ("image", photo),
            ("truth", overlay_mask(photo, example.truth, colour=TRUTH)),
            ("prediction", overlay_mask(photo, example.probability > threshold)),
        ]
        rows.append(side_by_side(shown, title=example.phrase, height=192))
    return stacked(rows)


def example_photo(example: Example) -> Image.Image:
    """The view's pixels, or a grey card of its size."""
    if example.image is None:
        return Image.fromarray(np.full((*example.truth.shape, 3), 128, np.uint8))
    return Image.fromarray(example.image)
