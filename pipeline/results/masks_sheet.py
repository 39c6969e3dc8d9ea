"""Examples of several systems' masks on one sheet."""

from collections.abc import Mapping

from PIL import Image

from ldznet.errors import UserError
from ldznet.scores import FIXED_THRESHOLD
from pipeline.evaluation.example_pictures import example_photo
from pipeline.evaluation.run import Evaluation
from pipeline.pictures import TRUTH, overlay_mask, side_by_side, stacked
from pipeline.recipe import Recipe

_HEIGHT = 144  # px a picture


def require_examples(recipe: Recipe) -> None:
    """See before any training that there will be masks to show.

    Raises:
        UserError: the recipe keeps none.
    """
    if recipe.evaluate.examples == 0:
        raise UserError("evaluate.examples=0 keeps no masks, and the results show some: set it to 1 or more")


def masks_sheet(
    evaluation: Evaluation, *, set_name: str, models: Mapping[str, str] | None = None, rows: int = 6
) -> Image.Image:
    """A row a phrase: photo, truth, systems' masks, each at its threshold.

    Args:
        evaluation: with at least one example of the set.
        set_name: whose examples.
        models: some of the systems in their order, and what to write above their masks; None: all.
        rows: phrases, at most: no more than there are examples.
    """
    if models is None:
        models = {model: model for model, of in evaluation.examples if of == set_name}
    kept = min(len(evaluation.examples[model, set_name]) for model in models)
    return stacked([_row(evaluation, models, set_name, number) for number in range(min(rows, kept))])


def _row(evaluation: Evaluation, models: Mapping[str, str], set_name: str, number: int) -> Image.Image:
    first = evaluation.examples[next(iter(models)), set_name][number]
    photo = example_photo(first)
    panels = [("photo", photo), ("truth", overlay_mask(photo, first.truth, colour=TRUTH))]
    for model, title in models.items():
        probability = evaluation.examples[model, set_name][number].probability
        mask = probability > evaluation.thresholds.get(model, FIXED_THRESHOLD)
        panels.append((title, overlay_mask(photo, mask)))
    return side_by_side(panels, title=first.phrase, height=_HEIGHT)
