"""Numbers 1..16 for a UNet's spatial-attention layers, in the order in which data meets them (paper)."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ldznet.errors import UserError

PAPER_BLOCKS = (6, 7, 8, 9, 10)  # what LD-ZNet fuses


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One spatial-attention layer of a UNet: its number, its place, and the shape of its output."""

    number: int
    path: str  # module path in the diffusers UNet, e.g. "down_blocks.2.attentions.1"
    channels: int
    stride: int  # latent positions per feature position, along one side
    heads: int  # attention heads of the layer

    @property
    def head_width(self) -> int:
        """Channels of one attention head."""
        return self.channels // self.heads


def unet_blocks(unet: nn.Module) -> dict[int, Block]:
    """Number every spatial-attention layer of a diffusers `UNet2DConditionModel`.

    Works on `meta` and on a UNet whose last up blocks were dropped. Stable Diffusion gives 16: 6 on the way
    down, 1 in the middle, 9 on the way up.
    """
    return {block.number: block for block in _walk_blocks(unet)}


def _walk_blocks(unet: Any) -> Iterator[Block]:
    number, stride = 0, 1
    stages = [(f"down_blocks.{i}", stage) for i, stage in enumerate(unet.down_blocks)]
    stages += [("mid_block", unet.mid_block)]
    stages += [(f"up_blocks.{i}", stage) for i, stage in enumerate(unet.up_blocks)]
    for name, stage in stages:
        for index, layer in enumerate(getattr(stage, "attentions", ())):
            number += 1
            yield Block(
                number=number,
                path=f"{name}.attentions.{index}",
                channels=layer.in_channels,
                stride=stride,
                heads=layer.transformer_blocks[0].attn1.heads,
            )
        if getattr(stage, "downsamplers", None) is not None:
            stride *= 2
        if getattr(stage, "upsamplers", None) is not None:
            stride //= 2


def check_blocks(blocks: Iterable[int], known: Mapping[int, Block] | Iterable[int]) -> tuple[int, ...]:
    """The block numbers sorted and without repeats.

    Raises:
        UserError: a number that the UNet does not have, or no number at all.
    """
    numbers, available = sorted(set(blocks)), sorted(known)
    if not numbers:
        raise UserError(f"no block is named; choose from {available[0]}..{available[-1]}")
    for number in numbers:
        if number not in available:
            raise UserError(f"block {number} is out of range; this UNet has {available[0]}..{available[-1]}")
    return tuple(numbers)
