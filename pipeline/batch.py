"""A batch as the networks take it, from the cache or computed online."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Inputs and targets of one step. `weight` is 0 for a padding sample, which then counts nowhere."""

    keys: tuple[str, ...]
    latents: Tensor  # B,4,h,w  z, scaled, without noise
    context: Tensor  # B,77,D  text encoder's last hidden state
    features: dict[int, Tensor]  # block number -> B,C,h_b,w_b
    masks: Tensor  # B,1,H,W  in {0,1}, float
    weight: Tensor  # B  1 for a sample, 0 for padding
    images: Tensor | None = None  # B,3,H,W in [-1,1], where the cache keeps them (RGBNet)
    facts: tuple[dict[str, Any], ...] = ()  # phrase, prompt, timestep, view and ids of each sample

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "Batch":
        """The batch on a device; network inputs cast to `dtype`, masks and weights stay fp32."""

        def move(name: str, value: Tensor) -> Tensor:
            kept = dtype if name not in {"masks", "weight"} else None
            return value.to(device=device, dtype=kept, non_blocking=True)

        moved: dict[str, object] = {"keys": self.keys, "facts": self.facts}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                moved[field.name] = move(field.name, value)
            elif isinstance(value, dict):
                moved[field.name] = {number: move("features", tensor) for number, tensor in value.items()}
        return Batch(**moved)  # type: ignore[arg-type]
