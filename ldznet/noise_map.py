"""Where a phrase changes the frozen UNet's noise estimate: an untrained segmenter. Paper, figure 1.

The figure shows the pixel-wise norm of the conditional minus the unconditional noise estimate. At which timesteps, and
averaged over how many draws, the paper does not say: both are options here.
"""

from itertools import product

import torch
from torch import Tensor

from ldznet.errors import UserError
from ldznet.frozen_ldm import FrozenLDM
from ldznet.noise_map_config import NoiseMapConfig


class NoiseMaps:
    """Noise maps of latents and prompts. Equal arguments give equal maps, whatever else is in a batch."""

    def __init__(self, *, ldm: FrozenLDM, config: NoiseMapConfig | None = None) -> None:
        """Hold a frozen LDM.

        Args:
            ldm: with the whole UNet.
            config: at which timesteps the latents are noised, and the seeds of the noise, which the two estimates of a
                map share. Maps are averaged over both.

        Raises:
            UserError: a timestep outside the schedule.
        """
        config = config or NoiseMapConfig()
        for timestep in config.timesteps:
            if not 0 <= timestep < ldm.train_timesteps:
                raise UserError(
                    f"timestep {timestep} is out of range; the schedule has 0..{ldm.train_timesteps - 1}"
                )
        self._ldm = ldm
        self._draws = list(product(config.timesteps, config.seeds))
        self._nothing = ldm.encode_prompts([""])  # 1,77,D: what guidance calls unconditional

    @torch.inference_mode()
    def norms(self, latents: Tensor, context: Tensor) -> Tensor:
        """The mean norm over channels of the difference between the estimates.

        Args:
            latents: `B,4,h,w`, scaled, without noise.
            context: `B,77,D`.

        Returns:
            `B,1,h,w` fp32 on the LDM's device, not negative.
        """
        latents = latents.to(self._ldm.device, torch.float32)
        nothing = self._nothing.expand(len(latents), -1, -1)
        total = torch.zeros(len(latents), 1, *latents.shape[-2:], device=latents.device)
        for timestep, seed in self._draws:
            generator = torch.Generator("cpu").manual_seed(seed)
            noise = torch.randn((1, *latents.shape[1:]), generator=generator).expand_as(latents)
            steps = torch.full((len(latents),), timestep, device=latents.device)
            noisy = self._ldm.add_noise(latents, noise, steps)
            with_phrase = self._ldm.noise_estimate(noisy, steps, context)
            without = self._ldm.noise_estimate(noisy, steps, nothing)
            total += (with_phrase - without).norm(dim=1, keepdim=True)  # B,4,h,w -> B,1,h,w
        return total / len(self._draws)

    def maps(self, latents: Tensor, context: Tensor) -> Tensor:
        """Norms stretched to [0,1], each map by its own lowest and highest value: `B,1,h,w`.

        A phrase has no scale of its own in the noise estimate, so that only the order within a photo is told.
        """
        norms = self.norms(latents, context)
        low, high = norms.amin((1, 2, 3), keepdim=True), norms.amax((1, 2, 3), keepdim=True)
        return (norms - low) / (high - low).clamp(min=torch.finfo(norms.dtype).tiny)
