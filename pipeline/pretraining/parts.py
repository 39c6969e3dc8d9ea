"""The parts of the model being pretrained, read from its output folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ldznet.importer_ldm import sd_scheduler
from ldznet.ldm_folder import Part, read_part_config, weight_files
from ldznet.pretraining.networks import build_text_encoder, build_unet
from ldznet.pretraining.objectives import DiffusionObjective
from pipeline.pretraining.recipe import PretrainRecipe


def read_autoencoder(ldm: Path, *, device: torch.device) -> Any:
    """The trained first stage, frozen."""
    from diffusers import AutoencoderKL

    config = read_part_config(ldm, "vae")
    network = AutoencoderKL.from_config({key: value for key, value in config.items() if key[0] != "_"})
    network.load_state_dict(read_weights(ldm, "vae"))
    return network.to(device).eval().requires_grad_(requires_grad=False)


def read_weights(ldm: Path, part: Part) -> dict[str, Tensor]:
    """All tensors of a part of an LDM folder, as they are stored."""
    return {name: tensor for path in weight_files(ldm, part) for name, tensor in load_file(path).items()}


def read_tokenizer(ldm: Path) -> Callable[[list[str]], Tensor]:
    """The tokenizer as `FrozenLDM.tokenize` uses it: prompts -> `B,77`."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(ldm / "tokenizer", local_files_only=True)

    def tokenize(prompts: list[str]) -> Tensor:
        encoded = tokenizer(
            prompts,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        ids: Tensor = encoded.input_ids
        return ids

    return tokenize


def fresh_objective(recipe: PretrainRecipe, *, blank: Tensor) -> DiffusionObjective:
    """UNet and text encoder as they begin. `blank`: the empty caption's tokens, with the last one that there is."""
    return DiffusionObjective(
        build_unet(recipe.networks, latent_side=recipe.latent_side, seed=recipe.seed),
        build_text_encoder(recipe.networks, tokens=int(blank.max()) + 1, seed=recipe.seed + 1),
        alphas_cumprod=sd_scheduler().alphas_cumprod,
        min_snr=recipe.diffusion.loss.min_snr,
    )
