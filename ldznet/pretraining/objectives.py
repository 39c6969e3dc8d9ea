"""What the two trainings minimise: the autoencoder's reconstruction and the diffusion model's noise estimate."""

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ldznet.config import Config


class AutoencoderLoss(Config):
    """Weights of the autoencoder's loss terms, each a mean per number."""

    gradient: float = Field(default=1.0, ge=0)  # L1 between differences of neighbouring pixels: edges
    kl: float = Field(default=3e-4, ge=0)  # towards a standard normal


class AutoencoderObjective(nn.Module):
    """Mean absolute error of pixels and of their gradients, and a little KL."""

    def __init__(self, autoencoder: Any, *, loss: AutoencoderLoss) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self._loss = loss

    def forward(self, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Loss terms, `loss` among them.

        Args:
            images: `B,3,H,W` in [-1,1].
            noise: `B,4,H/8,W/8` standard normal, which samples the posterior.
        """
        posterior = self.autoencoder.encode(images).latent_dist
        latents = posterior.mean + posterior.std * noise
        restored = self.autoencoder.decode(latents).sample.float()
        pixels = F.l1_loss(restored, images)
        edges = _gradient_error(restored - images)
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = pixels + self._loss.gradient * edges + self._loss.kl * kl
        mse = (restored.detach().clamp(-1, 1) - images).square().mean()
        return {"loss": loss, "pixels": pixels.detach(), "kl": kl.detach(), "mse": mse}


def _gradient_error(error: Tensor) -> Tensor:
    down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    across = (error[..., :, 1:] - error[..., :, :-1]).abs().mean()
    return down + across


class DiffusionLoss(Config):
    """How noise estimates are weighed, and how often the caption is left out."""

    drop_caption: float = Field(default=0.1, ge=0, lt=1)  # share of samples, for classifier-free guidance
    min_snr: float | None = Field(
        default=5.0, gt=0
    )  # weight min(snr, this) / snr (Hang et al. 2023); None: all alike


class DiffusionObjective(nn.Module):
    """Epsilon-prediction with UNet and text encoder trained together."""

    alphas_cumprod: Tensor

    def __init__(
        self, unet: Any, text_encoder: Any, *, alphas_cumprod: Tensor, min_snr: float | None
    ) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)
        self._min_snr = min_snr

    def forward(self, latents: Tensor, noise: Tensor, timesteps: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Loss terms: `loss`, weighted, and `mse`, the plain error of the noise estimate.

        Args:
            latents: `B,4,h,w`, scaled.
            noise: `B,4,h,w` standard normal.
            timesteps: `B` integers.
            tokens: `B,77` token ids.
        """
        errors = self.errors(latents, noise, timesteps, tokens)
        weight = torch.ones_like(errors)
        if self._min_snr is not None:
            alphas = self.alphas_cumprod[timesteps]
            snr = alphas / (1 - alphas)
            weight = snr.clamp(max=self._min_snr) / snr
        return {"loss": (weight * errors).mean(), "mse": errors.detach().mean()}

    def errors(self, latents: Tensor, noise: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """Mean squared error of each sample's noise estimate, `B`, unweighted."""
        alphas = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noised = alphas.sqrt() * latents + (1 - alphas).sqrt() * noise
        context = self.text_encoder(tokens).last_hidden_state
        estimate = self.unet(noised, timesteps, context).sample.float()
        return (estimate - noise).square().mean(dim=(1, 2, 3))
