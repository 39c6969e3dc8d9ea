"""How good a pretrained model is, on scenes that it was not trained on: reconstruction, and noise estimates."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ldznet.pretraining.objectives import DiffusionObjective
from pipeline.pretraining.autoencoder_batches import images_tensor, torch_generator
from pipeline.pretraining.latent_store import encoder_of
from pipeline.pretraining.scene_stream import compose_batch
from pipeline.scenes.config import ScenesConfig, Split

NOISE_LEVELS = 4  # a validation scene

Tokenize = Callable[[list[str]], Tensor]  # prompts -> B,77


def scene_images(scenes: ScenesConfig, *, split: Split, count: int) -> Tensor:
    """The first scenes of a split, `N,3,H,W` in [-1,1]."""
    return images_tensor(compose_batch(scenes, split=split, numbers=range(count), captions=1).images)


@torch.no_grad()
def reconstruct(autoencoder: Any, images: Tensor) -> Tensor:
    """Images `N,3,H,W` through the posterior's mean and back, in [-1,1], fp32."""
    latents = autoencoder.encode(images.to(next(autoencoder.parameters()).device)).latent_dist.mean
    restored: Tensor = autoencoder.decode(latents).sample.float().clamp(-1, 1)
    return restored


def reconstruction_figures(autoencoder: Any, images: Tensor, *, batch_size: int = 32) -> dict[str, float]:
    """PSNR in dB, mean over images, and mean absolute error (of a range of 2) of images `N,3,H,W`."""
    psnrs: list[float] = []
    errors: list[float] = []
    for part in images.split(batch_size):
        difference = reconstruct(autoencoder, part).cpu() - part
        mse = difference.square().mean(dim=(1, 2, 3))
        psnrs += (10 * torch.log10(4 / mse)).tolist()  # the range is 2 wide
        errors += difference.abs().mean(dim=(1, 2, 3)).tolist()
    return {"psnr_db": math.fsum(psnrs) / len(psnrs), "l1": math.fsum(errors) / len(errors)}


def validation_batch(
    autoencoder: Any, tokenize: Tokenize, scenes: ScenesConfig, *, split: Split, count: int, seed: int
) -> dict[str, Tensor]:
    """Scenes, noise and noise levels that are the same at every validation: the objective's inputs.

    Each scene comes at `NOISE_LEVELS` timesteps; together they are spread evenly over the schedule.
    """
    batch = compose_batch(scenes, split=split, numbers=range(count), captions=1)
    encode = encoder_of(autoencoder)
    mean = torch.cat([encode(part)[:, :4].cpu() for part in images_tensor(batch.images).split(32)])
    generator = torch_generator("validation", seed)
    latents = (mean * autoencoder.config.scaling_factor).repeat(NOISE_LEVELS, 1, 1, 1)
    levels = torch.arange(len(latents)) * 1000 // len(latents)
    return {
        "latents": latents,
        "noise": torch.randn(latents.shape, generator=generator),
        "timesteps": levels[torch.randperm(len(levels), generator=generator)],
        "tokens": tokenize([each[0] for each in batch.captions]).repeat(NOISE_LEVELS, 1),
    }


@torch.no_grad()
def noise_figures(
    objective: DiffusionObjective, batch: Mapping[str, Tensor], blank: Tensor, *, batch_size: int = 64
) -> dict[str, float]:
    """Unweighted error of the noise estimate with the scenes' captions, without any, and with each other's.

    Args:
        objective: the networks.
        batch: of `validation_batch`.
        blank: `77`, the empty caption's tokens.
        batch_size: scenes at once.
    """
    tokens, device = batch["tokens"], next(objective.parameters()).device
    asked = {
        "conditional": tokens,
        "unconditional": blank.cpu().expand_as(tokens),
        "shuffled": tokens.roll(1, dims=0),
    }
    figures = {}
    for name, captions in asked.items():
        errors: list[float] = []
        for first in range(0, len(tokens), batch_size):
            part = slice(first, first + batch_size)
            inputs = {key: batch[key][part].to(device) for key in ("latents", "noise", "timesteps")}
            errors += objective.errors(**inputs, tokens=captions[part].to(device)).tolist()
        figures[name] = math.fsum(errors) / len(errors)
    return figures
