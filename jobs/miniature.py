"""Make the miniature frozen LDM that a recipe describes: Stable Diffusion's topology, random weights, untrained."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.entry import recipe_job
from ldznet.errors import UserError

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

logger = logging.getLogger("jobs.miniature")


def miniature(recipe: "Recipe") -> None:
    """Build it at `ldm.source`, its tokenizer learnt from the recipe's phrases, unless a folder is there."""
    from ldznet.ldm_folder import check_ldm_folder
    from ldznet.miniature_ldm import build_miniature_ldm
    from pipeline.datasets.opening import open_dataset

    if recipe.miniature is None:
        raise UserError(
            f"the recipe {recipe.name!r} describes no miniature: add a section `miniature:`, even an empty one"
        )
    folder = Path(recipe.ldm.source)
    if folder.exists():
        check_ldm_folder(folder)
        logger.info("miniature: %s is there already", folder)
        return
    dataset = open_dataset(recipe.data_of(recipe.train_on))
    samples = dataset.samples(recipe.set_named(recipe.train_on).split)
    phrases = sorted({sample.phrase for sample in samples})
    build_miniature_ldm(folder, config=recipe.miniature, phrases=phrases)
    logger.info(
        "miniature: an UNTRAINED latent diffusion model, random weights of seed %d, in %s",
        recipe.miniature.seed,
        folder,
    )


main = recipe_job("miniature")(miniature)

if __name__ == "__main__":
    sys.exit(main())
