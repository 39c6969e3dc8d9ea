"""Pictures from captions: DDIM steps with classifier-free guidance."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ldznet.frozen_ldm import FrozenLDM


@torch.no_grad()
def sample_latents(
    ldm: FrozenLDM, captions: Sequence[str], *, noise: Tensor, steps: int = 50, guidance: float = 3.0
) -> Tensor:
    """Latents that the diffusion model makes of captions, deterministic given the noise (DDIM, eta 0).

    Args:
        ldm: with its whole UNet.
        captions: `B` of them.
        noise: `B,4,h,w` standard normal, where sampling starts.
        steps: denoising steps, spread evenly over the schedule.
        guidance: 1 is none; more follows the caption more closely.

    Returns:
        `B,4,h,w` fp32, scaled as the UNet takes them.
    """
    with_text, without = ldm.encode_prompts(captions), ldm.encode_prompts([""] * len(captions))
    alphas = ldm.alphas_cumprod
    times = torch.linspace(ldm.train_timesteps - 1, 0, steps).round().long()
    latents = noise.to(ldm.device, torch.float32)
    for index, time in enumerate(times.tolist()):
        now = torch.full((len(captions),), time)
        plain = ldm.noise_estimate(latents, now, without)
        estimate = plain + guidance * (ldm.noise_estimate(latents, now, with_text) - plain)
        alpha = alphas[time]
        following = alphas[times[index + 1]] if index + 1 < steps else torch.ones_like(alpha)
        clean = (latents - (1 - alpha).sqrt() * estimate) / alpha.sqrt()
        latents = following.sqrt() * clean + (1 - following).sqrt() * estimate
    return latents


@torch.no_grad()
def decode_latents(autoencoder: Any, latents: Tensor) -> Tensor:
    """Scaled latents `B,4,h,w` -> images `B,3,8h,8w` in [-1,1], fp32, by a whole `AutoencoderKL`."""
    unscaled = latents.to(autoencoder.device, autoencoder.dtype) / autoencoder.config.scaling_factor
    images: Tensor = autoencoder.decode(unscaled).sample.float().clamp(-1, 1)
    return images
