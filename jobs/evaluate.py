"""Score networks, CLIPSeg and others' masks on cached sets: a table with 95 % intervals, JSON, a report, MLflow."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.cache_notes import cache_keys
from jobs.entry import recipe_job
from jobs.evaluation_task import evaluate_where_it_is_quick
from jobs.job_notes import note_on_job

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.evaluation.run import Evaluation
    from pipeline.recipe import Recipe
    from pipeline.report.content import Command, Stage

logger = logging.getLogger("jobs.evaluate")


def evaluate(
    recipe: "Recipe", *, stages: "Sequence[Stage]" = (), commands: "Sequence[Command]" = ()
) -> "Evaluation":
    """Score every system on every set, print the table, write `evaluation.json`, `report.html` and into model cards.

    `phrases-SET.jsonl` lists what was scored, for other systems to make masks of (pipeline/evaluation/mask_folder.py).
    `stages` and `commands` are told in the report: what ran before, and what to type next.
    """
    from pipeline.evaluation.model_cards import tell_cards
    from pipeline.evaluation.run import systems_of
    from pipeline.report.experiment import write_experiment_report
    from pipeline.tracking.tracker import Tracker
    from pipeline.training.run import source_runs

    note_on_job(cache_keys(recipe, [*recipe.scored_sets, recipe.validate_on]))
    evaluation = evaluate_where_it_is_quick(recipe, systems_of(recipe))
    output = Path(recipe.output_folder)
    evaluation.save(output / "evaluation.json")
    evaluation.save_phrases(output)
    table = evaluation.table()
    print(table)  # noqa: T201 - the command's result, before what may fail now that all is scored
    tell_cards(evaluation, output / "models")
    with Tracker(recipe.tracking, folder=output) as tracker:
        tracker.start(job="evaluate", recipe=recipe, sources=source_runs(evaluation.folders))
        note_on_job({"mlflow_run.evaluate": tracker.run_url})
        for result in evaluation.results:
            at_original_size = "-original" if result.protocol == "original" else ""
            prefix = f"{result.model}/{result.set_name}{at_original_size}"
            tracker.log_metrics(
                {f"{prefix}/{name}": value for name, value in result.figures().items()}, step=0
            )
        report = write_experiment_report(
            recipe, evaluation, output / "report.html", tracker=tracker, stages=stages, commands=commands
        )
        tracker.log_text(table + "\n", "evaluation.txt")
        tracker.log_artifact(output / "evaluation.json")
        tracker.log_artifact(report)
    logger.info("report: %s", report)
    return evaluation


main = recipe_job("evaluate")(evaluate)

if __name__ == "__main__":
    sys.exit(main())
