"""How an LDM feature enters a spatial-attention layer of the segmentation network (paper, section 4.2)."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldznet.blocks import Block
from ldznet.errors import UserError
from ldznet.modeling.attention_pool import AttentionPool


class CrossAttentionFusion(nn.Module):
    """One more cross-attention in the transformer block: network's queries, LDM's keys and values.

    It stands after the text cross-attention and before the feed-forward, with its own LayerNorm and a
    residual, and is not zero-initialised.
    """

    def __init__(self, block: Block, *, grid: int, positional: Literal["learned", "sinusoidal"]) -> None:
        super().__init__()
        from diffusers.models.attention_processor import Attention

        self.pool = AttentionPool(
            channels=block.channels, heads=block.heads, grid=grid, positional=positional
        )
        self.norm = nn.LayerNorm(block.channels)
        self.attention = Attention(
            query_dim=block.channels,
            cross_attention_dim=block.channels,
            heads=block.heads,
            dim_head=block.head_width,
        )

    def forward(self, tokens: Tensor, feature: Tensor) -> Tensor:
        """`tokens B,hw,C`, `feature B,C,h',w'` -> `B,hw,C`."""
        return tokens + self.attention(self.norm(tokens), encoder_hidden_states=self.pool(feature))


class ConcatFusion(nn.Module):
    """The ablation: the LDM feature is concatenated right before the spatial-attention layer.

    A 1x1 convolution brings `2C` channels back to the layer's `C` (no source says how the authors did);
    it starts as the identity on the network's half, so that the layer's own weights keep their meaning.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.project = nn.Conv2d(2 * block.channels, block.channels, 1)
        with torch.no_grad():
            own = torch.eye(block.channels, device=self.project.weight.device)[:, :, None, None]
            self.project.weight[:, : block.channels].copy_(own)

    def forward(self, hidden: Tensor, feature: Tensor) -> Tensor:
        """`hidden B,C,h,w`, `feature B,C,h,w` -> `B,C,h,w`."""
        return self.project(torch.cat([hidden, feature], dim=1))


Fusion = CrossAttentionFusion | ConcatFusion


def attend_with_fusion(
    layer: Any, hidden: Tensor, context: Tensor, fusion: Fusion, feature: Tensor
) -> Tensor:
    """Run a diffusers spatial-attention layer with the LDM feature fused in: `B,C,h,w -> B,C,h,w`."""
    if isinstance(fusion, ConcatFusion):
        return layer(fusion(hidden, feature), encoder_hidden_states=context, return_dict=False)[0]
    tokens = _tokens_in(layer, hidden)
    for block in layer.transformer_blocks:
        tokens = tokens + block.attn1(block.norm1(tokens))
        tokens = tokens + block.attn2(block.norm2(tokens), encoder_hidden_states=context)
        tokens = fusion(tokens, feature)
        tokens = tokens + block.ff(block.norm3(tokens))
    return _tokens_out(layer, tokens, hidden)


def _tokens_in(layer: Any, hidden: Tensor) -> Tensor:
    hidden = layer.norm(hidden)
    if layer.use_linear_projection:
        return layer.proj_in(hidden.flatten(2).transpose(1, 2))  # B,C,h,w -> B,hw,C
    return layer.proj_in(hidden).flatten(2).transpose(1, 2)


def _tokens_out(layer: Any, tokens: Tensor, residual: Tensor) -> Tensor:
    size = residual.shape[-2:]
    if layer.use_linear_projection:
        return layer.proj_out(tokens).transpose(1, 2).unflatten(2, size) + residual  # B,hw,C -> B,C,h,w
    return layer.proj_out(tokens.transpose(1, 2).unflatten(2, size)) + residual


def check_feature(features: dict[int, Tensor] | None, block: Block, hidden: Tensor) -> Tensor:
    """The feature of a block, on the same grid as the network's own hidden map.

    Raises:
        UserError: it is missing or has another shape.
    """
    feature = (features or {}).get(block.number)
    if feature is None:
        raise UserError(f"the network fuses block {block.number}, but no feature of that block was given")
    if feature.shape != hidden.shape:
        raise UserError(
            f"the feature of block {block.number} is {tuple(feature.shape)},"
            f" the network needs {tuple(hidden.shape)}"
        )
    return feature
