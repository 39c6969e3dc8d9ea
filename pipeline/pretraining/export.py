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
from pipeline.pretraining.folder_checkpoints import FolderCheckpoints
from pipeline.pretraining.loop import STATE
from pipeline.pretraining.parts import fresh_objective, read_autoencoder, read_tokenizer, read_weights
from pipeline.pretraining.recipe import PretrainRecipe

LARGEST_FILE = "12MB"  # larger weights are cut into several files


def export_ldm(recipe: PretrainRecipe, folder: Path, *, dtype: torch.dtype = torch.float16) -> int | None:
    """Write the averaged weights of a pretraining as a whole LDM folder, replacing it.

    Args:
        recipe: what was, or is being, trained.
        folder: where to.
        dtype: what weights are stored as; they are read into any other.

    Returns:
        The step of the diffusion model, None where its training is finished.

    Raises:
        UserError: there is no autoencoder yet, or no checkpoint of the diffusion model.
    """
    ldm = Path(recipe.output_folder) / "ldm"
    if not (ldm / "vae" / "config.json").is_file():
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
def _read_diffusion(recipe: PretrainRecipe, ldm: Path, objective: DiffusionObjective) -> int | None:
    """Fill UNet and text encoder with averaged weights; the step that they are of, None at the end."""
    if (ldm / "model_index.json").is_file():
        objective.unet.load_state_dict(read_weights(ldm, "unet"))
        objective.text_encoder.load_state_dict(read_weights(ldm, "text_encoder"))
        return None
    newest = FolderCheckpoints(Path(recipe.output_folder) / "checkpoints" / "diffusion", keep=1).latest()
    if newest is None:
        raise UserError(f"{ldm} has no checkpoint of the diffusion model yet: train on")
    with safe_open(newest / STATE, "pt") as state:
        for name, tensor in objective.named_parameters():
            tensor.copy_(state.get_tensor(f"average/{name}"))
    return int(newest.name.removeprefix("step-"))


def _stored_as(dtype: torch.dtype, network: nn.Module) -> Any:
    return nn.Module.to(network, dtype)  # diffusers' own `to` warns of casting
