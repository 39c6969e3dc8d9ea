"""What comes before every experiment of docs/results.md: its scenes and their features, timed."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.recipe import Recipe
    from pipeline.results.minutes import Minutes


def prepared(recipe: "Recipe") -> "Minutes":
    """Make what is missing. Returns what it took, for what follows to be added."""
    from jobs.precompute import precompute
    from jobs.scenes import scenes
    from pipeline.results.minutes import Minutes

    minutes = Minutes(Path(recipe.output_folder) / "minutes.json")
    minutes.of("scenes", partial(scenes, recipe))
    minutes.of("precompute", partial(precompute, recipe))
    return minutes
