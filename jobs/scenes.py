"""Generate the scenes data set that a recipe describes: clip-art on photos, phrases, exact masks."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.entry import recipe_job
from jobs.progress import progress_bar
from ldznet.errors import UserError

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

logger = logging.getLogger("jobs.scenes")


def scenes(recipe: "Recipe") -> None:
    """Write the data set into the recipe's data folder, unless it is there."""
    from pipeline.scenes.config import SPLITS
    from pipeline.scenes.writing import write_scenes

    if recipe.scenes is None:
        raise UserError(
            f"the recipe {recipe.name!r} describes no scenes: add a section `scenes:`, even an empty one"
        )
    if recipe.data.format != "folder" or "://" in recipe.data.root:
        raise UserError("scenes are written to a local folder: set data.format=folder and data.root=FOLDER")
    total = sum(recipe.scenes.counts.of(split) for split in SPLITS)
    with progress_bar("scenes", total=total, unit="scenes") as advance:
        written = write_scenes(Path(recipe.data.root), recipe.scenes, progress=lambda *_: advance(1))
    how = "were there already" if written.reused else "written"
    logger.info("scenes: %d scenes with %d phrases in %s %s", total, written.phrases, written.folder, how)


main = recipe_job("scenes")(scenes)

if __name__ == "__main__":
    sys.exit(main())
