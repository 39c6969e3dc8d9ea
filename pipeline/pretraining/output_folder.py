"""The output folder of a pretraining: whose it is, and what is finished in it."""

import json
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from ldznet.errors import UserError
from ldznet.ldm_folder import Part, read_part_config, weight_files
from pipeline.pretraining.folder_checkpoints import FolderCheckpoints
from pipeline.pretraining.latent_store import rows_done
from pipeline.pretraining.loop import PROGRESS
from pipeline.pretraining.recipe import PretrainRecipe
from pipeline.pretraining.stage_mark import (
    TRAINED_STAGES,
    StageMark,
    TrainedStage,
    begin_marks,
    has_marks,
    read_mark,
)

RECIPE = "recipe.json"
_WEIGHTS: dict[TrainedStage, tuple[Part, ...]] = {
    "autoencoder": ("vae",),
    "diffusion": ("unet", "text_encoder"),
}


def claim_output(recipe: PretrainRecipe) -> None:
    """Make the folder this recipe's: what it holds can be gone on with, and `recipe.json` tells what is trained in it.

    Raises:
        UserError: see `check_output`; nothing was written then.
    """
    check_output(recipe)
    folder = Path(recipe.output_folder)
    if not has_marks(folder):
        for stage in TRAINED_STAGES:
            mark = finished_mark(folder, stage)
            if mark is not None:
                mark.save(folder)
        begin_marks(folder)
    partial = folder / f".{RECIPE}"
    partial.write_text(recipe.model_dump_json(indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / RECIPE)


def check_output(recipe: PretrainRecipe) -> None:
    """See whether what the folder holds is of this recipe, and no longer trained than it asks for.

    Raises:
        UserError: it is not; names the folder and the mend.
    """
    folder = Path(recipe.output_folder)
    _check_trained(recipe, folder, "autoencoder")
    rows_done(folder / "latents", identity=recipe.stage_identity("latents"), scenes=recipe.latents.scenes)
    _check_trained(recipe, folder, "diffusion")


def asked_mark(recipe: PretrainRecipe, stage: TrainedStage) -> StageMark:
    """The mark that a stage gets where it is trained as the recipe says."""
    training = recipe.autoencoder if stage == "autoencoder" else recipe.diffusion
    return StageMark(stage=stage, identity=recipe.stage_identity(stage), steps=training.steps)


def finished_mark(folder: Path, stage: TrainedStage) -> StageMark | None:
    """What a finished stage was trained by; None where it is not finished.

    Raises:
        UserError: the mark is damaged.
    """
    return read_mark(folder, stage) if has_marks(folder) else _mark_without_marks(folder, stage)


def newest_checkpoint(folder: Path, stage: TrainedStage) -> tuple[Path, StageMark] | None:
    """Where it lies, and how far it is trained, by what."""
    place = FolderCheckpoints(folder / "checkpoints" / stage, keep=1).latest()
    if place is None:
        return None
    progress = json.loads((place / PROGRESS).read_text(encoding="utf-8"))
    return place, StageMark(stage=stage, identity=progress["identity"], steps=progress["step"])


def _check_trained(recipe: PretrainRecipe, folder: Path, stage: TrainedStage) -> None:
    asked, newest = asked_mark(recipe, stage), newest_checkpoint(folder, stage)
    for found in (finished_mark(folder, stage), newest and newest[1]):
        if found is None:
            continue
        if found.identity != asked.identity:
            raise UserError(
                f"{folder} holds the {stage} of another recipe: set the recipe back, or give another output"
            )
        if found.steps > asked.steps:
            raise UserError(
                f"{folder} holds the {stage} after {found.steps} steps, more than the {asked.steps} asked for: "
                f"set {stage}.steps to {found.steps} or more, or give another output"
            )


def _mark_without_marks(folder: Path, stage: TrainedStage) -> StageMark | None:
    """Of a folder from before there were marks: finished where all weights are there, by what its last checkpoint says.

    Without a checkpoint by what its recipe tells, which in those days could be one that was never trained.
    """
    if not _has_weights(folder / "ldm", stage):
        return None
    newest = newest_checkpoint(folder, stage)
    if newest is not None:
        return newest[1]
    try:
        recipe = PretrainRecipe.model_validate_json((folder / RECIPE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):
        return None
    return asked_mark(recipe, stage)


def _has_weights(ldm: Path, stage: TrainedStage) -> bool:
    if stage == "diffusion" and not (ldm / "model_index.json").is_file():  # it is written last
        return False
    try:
        for part in _WEIGHTS[stage]:
            read_part_config(ldm, part)
            for path in weight_files(ldm, part):
                with safe_open(path, "pt"):  # refuses a file that was cut off
                    pass
    except (UserError, SafetensorError):
        return False
    return True
