"""Passes of the frozen networks, each of one fixed batch shape, the last rows padding.

Rounding depends on the shape of a batch, not on a sample's neighbours. On one CPU thread it does not depend on a
sample's place in the batch either; on several it may (in the last bit), so that a sample's bytes are then fixed within
its shard, not across shards. All noise comes from (seed, sample, draw) alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldznet.frozen_ldm import FrozenLDM
from ldznet.images import to_tensor
from pipeline.cache.member import Member
from pipeline.draws import draw_generator
from pipeline.precompute.preparation import ViewKey

_T = TypeVar("_T")
ViewPixels = tuple[ViewKey, NDArray[np.uint8]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewBatch:
    """Inputs of one pass of the first stage."""

    images: Tensor  # B,3,H,W in [-1,1]
    noise: Tensor  # B,4,h,w of the published posterior sample
    rows: int  # how many are not padding

    @classmethod
    def of(cls, views: Sequence[ViewPixels], *, size: int, seed: int, ldm: FrozenLDM) -> "ViewBatch":
        """Of at most `size` views, padded to it."""
        padded = _padded(views, size)
        images = torch.stack([to_tensor(pixels) for _, pixels in padded])
        height, width = images.shape[-2] // ldm.latent_stride, images.shape[-1] // ldm.latent_stride
        shape = (ldm.latent_channels, height, width)
        noise = torch.stack([_noise("posterior", seed, *key, shape=shape) for key, _ in padded])
        return cls(images=images, noise=noise, rows=len(views))


def encode_views(ldm: FrozenLDM, batch: ViewBatch) -> Tensor:
    """Latents `rows,4,h,w` in fp32, on the LDM's device."""
    device = ldm.device
    return ldm.encode_images(to_device(batch.images, device), noise=to_device(batch.noise, device))[
        : batch.rows
    ]


def encode_prompts(ldm: FrozenLDM, prompts: Sequence[str], *, size: int) -> Tensor:
    """Contexts `rows,77,D` of at most `size` prompts, on the LDM's device."""
    return ldm.encode_prompts(_padded(prompts, size))[: len(prompts)]


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureBatch:
    """Inputs of one UNet pass, on any device."""

    latents: Tensor  # B,4,h,w
    context: Tensor  # B,77,D
    noise: Tensor  # B,4,h,w
    timesteps: Tensor  # B
    rows: int  # how many are not padding

    @classmethod
    def of(
        cls, latents: Tensor, context: Tensor, *, timesteps: Sequence[int], noise: Sequence[Tensor], size: int
    ) -> "FeatureBatch":
        """Of at most `size` rows, padded to it with copies of the last."""
        rows = len(timesteps)
        place = torch.arange(size).clamp_(max=rows - 1)
        whole = rows == size
        return cls(
            latents=latents if whole else latents[place.to(latents.device)],
            context=context if whole else context[place.to(context.device)],
            noise=torch.stack(_padded(noise, size)),
            timesteps=torch.tensor(_padded(timesteps, size)),
            rows=rows,
        )


def block_features(ldm: FrozenLDM, batch: FeatureBatch, *, blocks: Sequence[int]) -> dict[int, Tensor]:
    """`{block: rows,C,h_b,w_b}` on the LDM's device."""
    device = ldm.device
    z, context = to_device(batch.latents, device), to_device(batch.context, device)
    noisy = ldm.add_noise(z, to_device(batch.noise, device), batch.timesteps)
    features = ldm.block_features(noisy, batch.timesteps, context, blocks=blocks)
    return {block: tensor[: batch.rows] for block, tensor in features.items()}


def member_noise(member: Member, *, seed: int, shape: Sequence[int]) -> Tensor:
    """The noise that a member's latents get before the UNet: `4,h,w` standard normal."""
    return _noise("noise", seed, member.sample_id, member.draw, shape=shape)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; to a GPU through pinned memory, without waiting."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
    return pinned.to(device, non_blocking=True)


def _noise(purpose: str, *parts: str | int, shape: Sequence[int]) -> Tensor:
    generator = draw_generator(purpose, *parts)
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))


def _padded(part: Sequence[_T], size: int) -> list[_T]:
    return [*part, *[part[-1]] * (size - len(part))]
