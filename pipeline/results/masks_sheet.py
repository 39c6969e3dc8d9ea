"""Examples of several systems' masks on one sheet."""

from collections.abc import Sequence

from PIL import Image

from pipeline.evaluation.example_pictures import example_photo
from pipeline.evaluation.run import Evaluation
from pipeline.pictures import TRUTH, overlay_mask, side_by_side, stacked

_HEIGHT = 144  # px a picture


def masks_sheet(evaluation: Evaluation, *, set_name: str, rows: int = 6) -> Image.Image:
    """A row a phrase: photo, truth, every system's mask at its threshold."""
    models = [model for model, of in evaluation.examples if of == set_name]
    return stacked([_row(evaluation, models, set_name, number) for number in range(rows)])


def _row(evaluation: Evaluation, models: Sequence[str], set_name: str, number: int) -> Image.Image:
    first = evaluation.examples[models[0], set_name][number]
    photo = example_photo(first)
    panels = [("photo", photo), ("truth", overlay_mask(photo, first.truth, colour=TRUTH))]
    for model in models:
        probability = evaluation.examples[model, set_name][number].probability
        mask = probability > evaluation.thresholds.get(model, 0.5)
        panels.append((model, overlay_mask(photo, mask)))
    return side_by_side(panels, title=first.phrase, height=_HEIGHT)
