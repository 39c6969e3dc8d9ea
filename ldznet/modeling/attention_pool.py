"""The attention pool that turns an LDM feature map into tokens (paper, section 4.2)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AttentionPool(nn.Module):
    """Self-attention over the positions of a feature map and their mean; every token is kept.

    Args:
        channels: C of the feature map.
        heads: attention heads, each `channels / heads` wide.
        grid: side n of the square grid that the learned positional embedding is made for.
        positional: `learned` (the authors' code) or `sinusoidal` (fixed sines and cosines of x and y).
    """

    def __init__(
        self,
        *,
        channels: int,
        heads: int,
        grid: int,
        positional: Literal["learned", "sinusoidal"] = "learned",
    ) -> None:
        super().__init__()
        self.heads = heads
        self.grid = grid
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, channels, 1)
        if positional == "learned":
            self.positional_embedding: nn.Parameter | None = nn.Parameter(
                torch.randn(channels, 1 + grid * grid) / channels**0.5
            )
        else:
            self.register_parameter("positional_embedding", None)

    def forward(self, feature: Tensor) -> Tensor:
        """`B,C,h,w -> B,1+hw,C`: the mean's token first."""
        height, width = feature.shape[-2:]
        tokens = feature.flatten(2)  # B,C,h,w -> B,C,hw
        tokens = torch.cat([tokens.mean(dim=-1, keepdim=True), tokens], dim=-1)  # B,C,1+hw
        tokens = tokens + self._positions(height, width, tokens)
        queries, keys, values = (
            part.unflatten(1, (self.heads, -1)).transpose(-1, -2)  # B,C,N -> B,heads,N,C/heads
            for part in self.qkv_proj(tokens).chunk(3, dim=1)
        )
        attended = F.scaled_dot_product_attention(queries, keys, values)
        attended = attended.transpose(-1, -2).flatten(1, 2)  # B,heads,N,C/heads -> B,C,N
        return self.c_proj(attended).transpose(1, 2)

    def _positions(self, height: int, width: int, like: Tensor) -> Tensor:
        """The positional encoding `C,1+hw` for a grid; the learned one is resized bicubically."""
        if self.positional_embedding is None:
            positions = sinusoidal_positions(like.shape[1], height, width, device=like.device)
            return F.pad(positions, (1, 0)).to(like.dtype)  # the mean has no place
        embedding = self.positional_embedding
        if (height, width) == (self.grid, self.grid):
            return embedding
        mean, places = (
            embedding[:, :1],
            embedding[:, 1:].unflatten(1, (self.grid, self.grid)),
        )  # C,n*n -> C,n,n
        resized = F.interpolate(
            places[None].float(), size=(height, width), mode="bicubic", align_corners=False
        )
        return torch.cat([mean, resized[0].flatten(1).to(embedding.dtype)], dim=1)


def sinusoidal_positions(channels: int, height: int, width: int, *, device: torch.device) -> Tensor:
    """Fixed positional encoding `C,hw`, fp32: a quarter each of sin x, cos x, sin y, cos y.

    x and y count positions; wavelengths go from 2 pi to 10000 * 2 pi as in Transformers. Channels that four
    does not divide stay zero.
    """
    quarter = channels // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, device=device, dtype=torch.float32) / max(quarter, 1))
    x = frequencies[:, None, None] * torch.arange(width, device=device, dtype=torch.float32).expand(
        height, width
    )
    y = frequencies[:, None, None] * torch.arange(height, device=device, dtype=torch.float32)[:, None].expand(
        -1, width
    )
    encoding = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()]).flatten(1)  # C,h,w -> C,hw
    return F.pad(encoding, (0, 0, 0, channels - len(encoding)))
