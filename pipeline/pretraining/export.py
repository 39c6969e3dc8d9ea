"""The pretrained model as one folder in the diffusers layout: finished, or as its newest checkpoint has it."""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from ldznet.errors import UserError
from ldznet.pretraining.networks import save_text_encoder, save_unet
from ldznet.pretraining.objectives import DiffusionObjective
from pipeline.pretraining.loop import STATE
from pipeline.pretraining.output_folder import check_output, finished_mark, newest_checkpoint
from pipeline.pretraining.parts import fresh_objective, read_autoencoder, read_tokenizer, read_weights
from pipeline.pretraining.recipe import PretrainRecipe

LARGEST_FILE = "12MB"  # larger weights are cut into several files


def export_ldm(recipe: PretrainRecipe, folder: Path, *, dtype: torch.dtype = torch.float16) -> int:
    """Write the averaged weights of a pretraining as a whole LDM folder, replacing it.

    Args:
        recipe: what was, or is being, trained.
        folder: where to.
        dtype: what weights are stored as; they are read into any other.

    Returns:
        The steps that the diffusion model is trained for: all of them where it is finished, else so far.

    Raises:
        UserError: there is no autoencoder or no checkpoint of the diffusion model yet, or they are of another recipe.
    """
    ldm = Path(recipe.output_folder) / "ldm"
    check_output(recipe)
    if finished_mark(Path(recipe.output_folder), "autoencoder") is None:
        raise UserError(f"{ldm} has no autoencoder yet: train on")
    objective = fresh_objective(recipe, blank=read_tokenizer(ldm)([""])[0])
    step = _read_diffusion(recipe, ldm, objective)
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(ldm / "tokenizer", folder / "tokenizer")
    autoencoder = _stored_as(dtype, read_autoencoder(ldm, device=torch.device("cpu")))
    autoencoder.save_pretrained(folder / "vae", max_shard_size=LARGEST_FILE)
    save_text_encoder(_stored_as(dtype, objective.text_encoder), folder)
    save_unet(_stored_as(dtype, objective.unet), folder, largest_file=LARGEST_FILE)
    return step


@torch.no_grad()
def _read_diffusion(recipe: PretrainRecipe, ldm: Path, objective: DiffusionObjective) -> int:
    """Fill UNet and text encoder with averaged weights; the step that they are of."""
    output = Path(recipe.output_folder)
    finished, newest = finished_mark(output, "diffusion"), newest_checkpoint(output, "diffusion")
    if finished is not None and (newest is None or newest[1].steps <= finished.steps):
        objective.unet.load_state_dict(read_weights(ldm, "unet"))
        objective.text_encoder.load_state_dict(read_weights(ldm, "text_encoder"))
        return finished.steps
    if newest is None:
        raise UserError(f"{ldm} has no checkpoint of the diffusion model yet: train on")
    place, reached = newest
    with safe_open(place / STATE, "pt") as state:
        for name, tensor in objective.named_parameters():
            tensor.copy_(state.get_tensor(f"average/{name}"))
    return reached.steps


def _stored_as(dtype: torch.dtype, network: nn.Module) -> Any:
    return nn.Module.to(network, dtype)  # diffusers' own `to` warns of casting
