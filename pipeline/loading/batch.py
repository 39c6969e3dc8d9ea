"""A batch as the networks take it, from the cache or computed online."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.cache.stored_type import dequantise


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Inputs and targets of one step. `weight` is 0 for a padding sample, which then counts nowhere.

    As the loader gives it, tensors are of the cache's stored type, and int8 or fp8 features mean nothing without
    `scales`: networks take what `to(device, dtype)` returns.
    """

    keys: tuple[str, ...]
    latents: Tensor  # B,4,h,w  z, scaled, without noise
    context: Tensor  # B,77,D  text encoder's last hidden state
    features: dict[int, Tensor]  # block number -> B,C,h_b,w_b
    scales: dict[int, Tensor] = field(
        default_factory=dict
    )  # block number -> B,G where features are quantised
    masks: Tensor  # B,1,H,W  bool: a quarter of the bytes to move
    weight: Tensor  # B  1 for a sample, 0 for padding
    images: Tensor | None = None  # B,3,H,W in [-1,1], where the cache keeps them (RGBNet)
    facts: tuple[dict[str, Any], ...] = ()  # phrase, prompt, timestep, view and ids of each sample

    def pin_memory(self) -> "Batch":
        """The batch in pinned memory, from which a GPU takes it while it computes. `torch.utils.data` calls it so."""
        return replace(
            self,
            latents=self.latents.pin_memory(),
            context=self.context.pin_memory(),
            features={block: values.pin_memory() for block, values in self.features.items()},
            scales={block: scale.pin_memory() for block, scale in self.scales.items()},
            masks=self.masks.pin_memory(),
            weight=self.weight.pin_memory(),
            images=None if self.images is None else self.images.pin_memory(),
        )

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "Batch":
        """The batch on a device; with a `dtype`, network inputs are of it, and quantised features are whole again.

        Stored values travel, and are dequantised where they arrive. Masks stay bool, weights fp32.
        """

        def move(tensor: Tensor, kept: torch.dtype | None = None) -> Tensor:
            return tensor.to(device=device, dtype=kept, non_blocking=True)

        features = {}
        scales = {block: move(scale) for block, scale in self.scales.items()}
        for block, values in self.features.items():
            if dtype is not None and block in scales:
                features[block] = dequantise(move(values), scales[block], dtype=dtype)
            else:
                features[block] = move(values, dtype)
        return replace(
            self,
            latents=move(self.latents, dtype),
            context=move(self.context, dtype),
            features=features,
            scales=scales if dtype is None else {},
            masks=move(self.masks),
            weight=move(self.weight),
            images=None if self.images is None else move(self.images, dtype),
        )
