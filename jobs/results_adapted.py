"""The LD-ZNet that comes with ldznet before and after training on a foreign style, and its controls."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path


def require_adaptable(recipe_file: Path, overrides: Sequence[str]) -> None:
    """See before any training that the results can be shown.

    Raises:
        UserError: they cannot.
    """
    from pipeline.recipe_file import load_recipe
    from pipeline.results.masks_sheet import require_examples

    require_examples(load_recipe(recipe_file, overrides))


def adapt(recipe_file: Path, overrides: Sequence[str], *, command: str, into: Path) -> None:
    """Train, score, and write `adapted.json` and `adapted.jpg`.

    Args:
        recipe_file: by which.
        overrides: of the recipe.
        command: that does it again, for the record.
        into: folder of the records.
    """
    from jobs.evaluate import evaluate
    from jobs.results_preparation import prepared
    from jobs.train import train
    from pipeline.recipe_file import load_recipe
    from pipeline.results.masks_sheet import masks_sheet
    from pipeline.results.record import ResultRecord, ResultRow

    recipe = load_recipe(recipe_file, overrides)
    minutes = prepared(recipe)
    folder = minutes.of("train", partial(train, recipe))
    scored = evaluate(
        load_recipe(recipe_file, [*overrides, f"evaluate.models=[{recipe.network.init_from},{folder}]"])
    )
    ResultRecord.of(
        recipe,
        map(ResultRow.of, scored.results),
        name="adapted",
        command=command,
        minutes=minutes.taken,
    ).save(into)
    masks_sheet(scored, set_name="foreign").save(into / "adapted.jpg", quality=88)
