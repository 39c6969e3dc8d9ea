"""What a segmentation network is made of."""

from collections.abc import Mapping
from inspect import signature
from typing import Any, Literal, Self

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from ldznet.blocks import PAPER_BLOCKS
from ldznet.config import Config
from ldznet.errors import UserError

Kind = Literal["ldznet", "znet", "rgbnet"]

_PLAIN_DOWN = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
_PLAIN_UP = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
# Keys of a diffusers UNet configuration that change no number of ours.
_IGNORED = ("sample_size", "out_channels", "dual_cross_attention", "num_class_embeds")


class UNetConfig(Config):
    """The part of diffusers' `UNet2DConditionModel` configuration that Stable Diffusion 1.x and 2.x use.

    Names and meanings are diffusers' (so `attention_head_dim` is the number of heads).
    Defaults are SD v1.4's.
    """

    in_channels: PositiveInt = 4
    block_out_channels: tuple[PositiveInt, ...] = (320, 640, 1280, 1280)
    layers_per_block: PositiveInt = 2
    down_block_types: tuple[str, ...] = _PLAIN_DOWN
    up_block_types: tuple[str, ...] = _PLAIN_UP
    cross_attention_dim: PositiveInt = 768
    attention_head_dim: PositiveInt | tuple[PositiveInt, ...] = 8
    use_linear_projection: bool = False
    upcast_attention: bool = False
    only_cross_attention: bool = False
    norm_num_groups: PositiveInt = 32
    norm_eps: PositiveFloat = 1e-5
    act_fn: str = "silu"
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: NonNegativeInt = 0
    downsample_padding: NonNegativeInt = 1
    mid_block_scale_factor: PositiveFloat = 1
    dropout: NonNegativeFloat = 0.0

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> Self:
        """Take over a diffusers UNet configuration (the contents of `unet/config.json`).

        Raises:
            UserError: the UNet uses something that Stable Diffusion 1.x and 2.x do not.
        """
        defaults = _diffusers_defaults()
        kept = {}
        for key, value in config.items():
            if key in cls.model_fields:
                kept[key] = tuple(value) if isinstance(value, list) else value
            elif key.startswith("_") or key in _IGNORED:
                continue
            elif value != defaults.get(key):
                raise UserError(
                    f"the LDM's UNet has {key}={value!r}, which Stable Diffusion 1.x and 2.x do not use"
                )
        return cls(**kept)

    def to_diffusers(self) -> dict[str, Any]:
        """Keyword arguments for `UNet2DConditionModel`, with the one output channel of a mask."""
        return {**self.model_dump(), "out_channels": 1}


def _diffusers_defaults() -> dict[str, Any]:
    from diffusers import UNet2DConditionModel

    return {
        name: parameter.default
        for name, parameter in signature(UNet2DConditionModel.__init__).parameters.items()
    }


class NetworkConfig(Config):
    """One segmentation network (paper, sections 4.1 and 4.2)."""

    kind: Kind = "ldznet"
    unet: UNetConfig = UNetConfig()
    blocks: tuple[int, ...] = PAPER_BLOCKS
    """Fused blocks, any subset of 1..16; LD-ZNet only."""
    fusion: Literal["cross_attention", "concat"] = "cross_attention"
    positional: Literal["learned", "sinusoidal"] = "learned"
    """Positional encoding of the attention pool. The authors' code learns it."""
    positional_latent_side: PositiveInt = 48
    """Side of the latents that the learned positional embedding is made for; 48 is 384 px."""
    stem_channels: tuple[PositiveInt, PositiveInt, PositiveInt] = (32, 64, 128)
    """Widths of RGBNet's three stride-2 convolutions. Unconfirmed by any source: our choice."""
    head_init: Literal["identity", "default"] = "identity"
    """`identity`: a new head starts as plain x8 upsampling, so gradients pass its one-channel layers.
    `default`: PyTorch's default initialisation."""
    text: Literal["phrase", "none"] = "phrase"
    """What the network's own cross-attention reads. `none` is an ablation: a context of zeros, so that the phrase
    reaches the mask through the fused features alone, and not at all where none are fused."""
    gradient_checkpointing: bool = False

    @property
    def fused_blocks(self) -> tuple[int, ...]:
        """The blocks whose LDM features the network takes; none but for LD-ZNet."""
        return tuple(sorted(set(self.blocks))) if self.kind == "ldznet" else ()
