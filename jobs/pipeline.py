"""Precompute, train and evaluate, one after the other; each goes on where it was, none is repeated when done."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.entry import recipe_job

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

logger = logging.getLogger("jobs.pipeline")


def pipeline(recipe: "Recipe") -> None:
    """Run what the recipe lacks. Scenes and a miniature that it describes are made first, on this machine.

    A training that was finished is found finished by `train`, features that are there by `precompute`.
    """
    from jobs.evaluate import evaluate
    from jobs.evaluation_inputs import EvaluationInputs
    from jobs.miniature import miniature
    from jobs.precompute import precompute
    from jobs.scenes import scenes
    from jobs.train import train

    if recipe.scenes is not None:
        scenes(recipe)
    if recipe.miniature is not None:
        miniature(recipe)
    precompute(recipe)
    train(recipe)
    inputs = EvaluationInputs.of(recipe)
    if inputs.were_evaluated():
        report = Path(recipe.output_folder) / "report.html"
        logger.info("evaluate: %s tells of these models on these sets already, nothing to do", report)
        return
    evaluate(recipe)
    inputs.note()


main = recipe_job("pipeline")(pipeline)

if __name__ == "__main__":
    sys.exit(main())
