"""What each network takes: training from cached features and from photos, and a mask of a new photo."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldznet.errors import UserError

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

logger = logging.getLogger("jobs.results")

_STEPS, _LOG_EVERY = 50, 10
_PHOTOS = 30


def require_tracked(recipe: "Recipe") -> None:
    """See before any training that its rates will be logged.

    Raises:
        UserError: they will not.
    """
    if not recipe.tracking.enabled:
        raise UserError("tracking.enabled=false logs no rates, which are what is measured: leave it out")


def measure_times(recipe_file: Path, overrides: Sequence[str], *, command: str, into: Path) -> None:
    """Train each network for a moment, cached and online, segment some photos, and write `times.json`.

    Args:
        recipe_file: of the comparisons.
        overrides: of it.
        command: that does it again, for the record.
        into: folder of the records.
    """
    from jobs.precompute import precompute
    from jobs.scenes import scenes
    from jobs.train import PlaceInGrid, train
    from pipeline.recipe_file import load_recipe
    from pipeline.results.experiments import NETWORKS
    from pipeline.results.origin import made_here
    from pipeline.results.times import TimesRecord, TimesRow, photo_milliseconds, training_rate

    short = [
        f"train.steps={_STEPS}",
        f"train.log_every={_LOG_EVERY}",
        "train.warmup_steps=0",
        "validate_on=null",
    ]
    base = load_recipe(recipe_file, [*short, *overrides])
    scenes(base)
    precompute(base)
    rows = []
    for system, chosen in NETWORKS.items():
        rates = {}
        for features in ("cached", "online"):
            recipe = load_recipe(recipe_file, [*short, *chosen, f"train.features={features}", *overrides])
            label = f"timed-{system}-{features}"
            place = PlaceInGrid(label=label, title=label, parent_run_id=None, wait_minutes=None)
            folder = train(recipe, place=place)
            rates[features] = training_rate(recipe, folder)
        milliseconds = photo_milliseconds(folder, base, set_name=base.scored_sets[0], photos=_PHOTOS)
        logger.info("times: %s: samples/s %s; a photo %.0f ms", system, rates, milliseconds)
        rows.append(TimesRow(system=system, photo_milliseconds=milliseconds, **rates))
    assert base.train.steps is not None, "it was given"
    record = TimesRecord(
        command=command,
        batch_size=base.train.batch_size,
        steps=base.train.steps,
        photos=_PHOTOS,
        rows=tuple(rows),
        **made_here(),
    )
    into.mkdir(parents=True, exist_ok=True)
    (into / "times.json").write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
