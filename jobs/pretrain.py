"""Pretrain a small latent diffusion model on generated scenes: autoencoder, latents, UNet with text encoder."""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.entry import configure_logging, exit_code_of

if TYPE_CHECKING:
    from pipeline.pretraining.curve_file import LogMetrics
    from pipeline.pretraining.recipe import PretrainRecipe, Stage
    from pipeline.pretraining.stages import Pretraining

logger = logging.getLogger("jobs.pretrain")

STAGES: tuple["Stage", ...] = ("autoencoder", "latents", "diffusion")


def pretrain_here(recipe: "PretrainRecipe", *, until: float | None = None) -> bool:
    """Every stage that is left, in this process: no Ray, no MLflow. False where time was up before the end.

    Raises:
        UserError: the output folder holds another recipe's work.
    """
    from pipeline.pretraining.output_folder import claim_output

    claim_output(recipe)
    run = _pretraining(recipe, until=until, tracked=None)
    return all(run.run_stage(stage) for stage in STAGES)


def pretrain_on_ray(recipe: "PretrainRecipe", *, until: float | None = None) -> bool:
    """Every stage that is left, on Ray Train's ranks, told to MLflow. False where time was up before the end.

    The output folder must be seen by every rank.

    Args:
        recipe: what to train.
        until: a `time.time()` after which the stage is left, with a checkpoint.

    Raises:
        UserError: the output folder holds another recipe's work.
    """
    from jobs.local_ray import ray_session
    from jobs.train_ranks import run_ranks
    from pipeline.pretraining.output_folder import claim_output
    from pipeline.tracking.tracker import Tracker
    from pipeline.training.config import TrainConfig

    claim_output(recipe)
    folder = Path(recipe.output_folder).absolute()
    ranks = TrainConfig(
        engine="ddp",
        workers=recipe.workers,
        threads=recipe.threads,
        batch_size=recipe.diffusion.batch_size,
        max_failures=recipe.max_failures,
    )
    quiet = recipe.tracking.named(recipe.name).model_copy(update={"system_metrics": False})
    with (
        Tracker(quiet, folder=folder) as tracker,
        ray_session(cpus=recipe.workers * recipe.threads + 1),
    ):
        run_id = tracker.start(job="pretrain", recipe=recipe, tags={"data": recipe.data_identity()})
        for stage in STAGES:
            config = {
                "recipe": recipe.model_copy(update={"output": str(folder)}).model_dump(mode="json"),
                "stage": stage,
                "run_id": run_id,
                "until": until,
            }
            name = f"{recipe.name}-{stage}-{recipe.stage_identity(stage)}"
            outcome = run_ranks(
                _rank,
                config=config,
                # One rank encodes: others would only wait, no longer than a collective operation may.
                train_config=ranks.model_copy(update={"workers": 1}) if stage == "latents" else ranks,
                storage=str(folder / "ray"),
                name=name,
            )
            if not outcome.value:
                return False
    return True


def _rank(config: dict[str, Any]) -> bool:
    import torch.distributed as dist

    from pipeline.pretraining.recipe import PretrainRecipe
    from pipeline.tracking.tracker import Tracker

    configure_logging()
    recipe = PretrainRecipe.model_validate(config["recipe"])
    left = None if config["until"] is None else config["until"] - time.time()
    with Tracker(recipe.tracking, folder=Path(recipe.output_folder)) as tracker:
        if dist.get_rank() == 0 and config["run_id"] is not None:
            tracker.start(job="pretrain", run_id=config["run_id"])
        run = _pretraining(
            recipe,
            until=None if left is None else time.monotonic() + left,
            tracked=tracker.log_metrics,
        )
        return run.run_stage(config["stage"])


def _pretraining(
    recipe: "PretrainRecipe", *, until: float | None, tracked: "LogMetrics | None"
) -> "Pretraining":
    from pipeline.pretraining.curve_file import CurveFile
    from pipeline.pretraining.folder_checkpoints import FolderCheckpoints
    from pipeline.pretraining.stages import Pretraining

    folder = Path(recipe.output_folder)
    keep = {
        "autoencoder": recipe.autoencoder.keep_checkpoints,
        "diffusion": recipe.diffusion.keep_checkpoints,
    }
    return Pretraining(
        recipe,
        checkpoints=lambda stage: FolderCheckpoints(folder / "checkpoints" / stage, keep=keep[stage]),
        observer=lambda stage: CurveFile(folder / "curves", stage, tracked=tracked),
        until=until,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command: `pretrain RECIPE [a.b=c ...] [--alone] [--minutes M] [--show]`."""
    arguments = _parser().parse_intermixed_args(sys.argv[1:] if argv is None else list(argv))

    def act() -> None:
        from pipeline.pretraining.recipe_file import load_pretrain_recipe

        recipe = load_pretrain_recipe(arguments.recipe, arguments.overrides)
        ldm = Path(recipe.output_folder) / "ldm"
        if arguments.dry_run:
            text = f"recipe     {recipe.name}\nwould run  pretrain: {', '.join(STAGES)}\noutput     {ldm}"
            print(text)  # noqa: T201 - the command's result
            return
        if arguments.show:
            from pipeline.pretraining.show import show_pretrained

            logger.info("pictures and figures: %s", show_pretrained(recipe))
            return
        seconds = None if arguments.minutes is None else 60 * arguments.minutes
        if arguments.alone:
            done = pretrain_here(recipe, until=None if seconds is None else time.monotonic() + seconds)
        else:
            done = pretrain_on_ray(recipe, until=None if seconds is None else time.time() + seconds)
        logger.info("%s: %s", "finished" if done else "stopped in time; the same command goes on", ldm)

    return exit_code_of(act)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ldznet pretrain", description=(__doc__ or "").strip())
    parser.add_argument(
        "recipe", type=Path, help="a recipe file (YAML), such as jobs/recipes/pretrain_cpu.yaml"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="a.b=c", help="overrides, such as diffusion.steps=100"
    )
    parser.add_argument("--alone", action="store_true", help="in this process: no Ray, no MLflow")
    parser.add_argument("--minutes", type=float, help="stop after so long, with a checkpoint to go on from")
    parser.add_argument(
        "--show", action="store_true", help="train nothing: samples, reconstructions and figures so far"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check the recipe, say what would be done, touch nothing"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
