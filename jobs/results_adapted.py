"""The LD-ZNet that comes with ldznet before and after training on a foreign style, and its controls."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.evaluation.run import Evaluation
    from pipeline.recipe import Recipe
    from pipeline.results.minutes import Minutes

_FOREIGN, _HIDDEN = "foreign", "hidden"  # sets of the recipe
_SALIENCY = "saliency"
_EVERYTHING = "everything-drawn"
_PHRASE_BLIND = (f"sets.train.phrases={_HIDDEN}", f"sets.val.phrases={_HIDDEN}", f"evaluate.sets=[{_HIDDEN}]")


def require_adaptable(recipe_file: Path, overrides: Sequence[str]) -> None:
    """See before any training that the results can be shown.

    Raises:
        UserError: they cannot.
    """
    from ldznet.errors import UserError
    from pipeline.recipe_file import load_recipe
    from pipeline.results.masks_sheet import require_examples
    from pipeline.results.record import PROTOCOL

    recipe = load_recipe(recipe_file, overrides)
    require_examples(recipe)
    if PROTOCOL not in recipe.evaluate.protocols:
        raise UserError(f"the results are by the protocol {PROTOCOL}: leave it in evaluate.protocols")
    if not recipe.network.starts_trained:
        raise UserError(
            f"network.init_from={recipe.network.init_from}: the results show a trained network before and after"
        )
    lacking = [name for name in (_FOREIGN, _HIDDEN) if name not in recipe.scored_sets]
    if lacking:
        raise UserError(f"the results show scores on {' and '.join(lacking)}: leave it in evaluate.sets")
    load_recipe(recipe_file, [*overrides, *_PHRASE_BLIND])


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
    from pipeline.results.differences import differences_between
    from pipeline.results.masks_sheet import masks_sheet
    from pipeline.results.record import PROTOCOL, ResultRecord, ResultRow

    recipe = load_recipe(recipe_file, overrides)
    minutes = prepared(recipe)
    folder = minutes.of("train", partial(train, recipe))
    models = f"evaluate.models=[{recipe.network.init_from},{folder}]"
    scored = evaluate(load_recipe(recipe_file, [*overrides, models]))
    before, after = dict.fromkeys(row.model for row in scored.results)
    blind = load_recipe(recipe_file, [*overrides, *_PHRASE_BLIND, f"train.steps={_steps(recipe)}"])
    everywhere = load_recipe(recipe_file, [*overrides, f"evaluate.sets=[{_FOREIGN},{_HIDDEN}]"])
    results = [
        *scored.results,
        *_score_saliency(blind, minutes).results,
        *_score_everything_drawn(everywhere).results,
    ]
    ResultRecord.of(
        recipe,
        (ResultRow.of(one) for one in results if one.protocol == PROTOCOL),
        name="adapted",
        command=command,
        minutes=minutes.taken,
        differences=[differences_between(scored, (after, before), _FOREIGN)],
    ).save(into)
    masks_sheet(scored, set_name=_FOREIGN).save(into / "adapted.jpg", quality=88)


def _score_saliency(recipe: "Recipe", minutes: "Minutes") -> "Evaluation":
    """The same training with phrases that tell nothing."""
    from jobs.precompute import precompute
    from jobs.train import PlaceInGrid, train
    from pipeline.evaluation.run import evaluate_models
    from pipeline.recipe import SystemConfig

    minutes.of("precompute without phrases", partial(precompute, recipe))
    place = PlaceInGrid(label=_SALIENCY, title=_SALIENCY, parent_run_id=None, wait_minutes=None)
    folder = minutes.of("train without phrases", partial(train, recipe, place=place))
    return evaluate_models(recipe, [SystemConfig(source=str(folder))])


def _score_everything_drawn(recipe: "Recipe") -> "Evaluation":
    """What a faultless mask of whatever stands out would score."""
    from pipeline.evaluation.run import evaluate_models
    from pipeline.recipe import SystemConfig
    from pipeline.results.union_masks import write_union_masks

    folder = Path(recipe.output_folder) / "masks" / _EVERYTHING
    for set_name in recipe.scored_sets:
        write_union_masks(recipe, set_name, folder)
    return evaluate_models(recipe, [SystemConfig(source=str(folder))])


def _steps(recipe: "Recipe") -> int:
    """Of the training with phrases: those that are all alike merge where their masks do, and make shorter epochs."""
    from pipeline.object_store.opening import open_store
    from pipeline.training.cached_sets import required_manifest
    from pipeline.training.rank_training import make_loader

    store, batch_size = open_store(recipe.cache.url), recipe.train.batch_size
    manifest = required_manifest(store, recipe, recipe.train_on)
    loader = make_loader(recipe, store, manifest, batch_size=batch_size, shuffle=True)
    return recipe.train.total_steps(len(loader))
