"""One explicit walk over the sub-modules of a diffusers `UNet2DConditionModel`.

The frozen LDM records features on it and stops early; the trainable networks put their fusion into it.
Every module is called through its own `forward`, which is what parameter-sharding engines need.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

BODY = 0  # the number under which the walk gives the last hidden map, before the output layers

Attend = Callable[[int, Any, Tensor, Tensor], Tensor]
"""`(block number, spatial-attention layer, hidden B,C,h,w, context B,77,D) -> hidden B,C,h,w`"""


def attend_to_text(_number: int, layer: Any, hidden: Tensor, context: Tensor) -> Tensor:
    """What Stable Diffusion does at a spatial-attention layer: run it on the hidden map and the text."""
    return layer(hidden, encoder_hidden_states=context, return_dict=False)[0]


def walk_unet(
    unet: Any,
    latents: Tensor,
    timesteps: Tensor,
    context: Tensor,
    *,
    attend: Attend = attend_to_text,
    gradient_checkpointing: bool = False,
) -> Iterator[tuple[int, Tensor]]:
    """Give `(number, B,C,h,w)` after each spatial-attention layer in turn, and `(BODY, B,C,h,w)` at the end.

    Nothing past the last item taken is computed. Sides of the latents are multiples of 8.

    Args:
        unet: a `UNet2DConditionModel` as SD 1.x and 2.x use it (no class, size or image conditions).
        latents: `B,C,h,w`.
        timesteps: `B`, one a sample.
        context: `B,77,D` text encoder's last hidden state.
        attend: runs the spatial-attention layer of a number.
        gradient_checkpointing: recompute ResNets and attention layers in the backward pass.
    """
    time = embed_timesteps(unet, timesteps, dtype=latents.dtype)
    hidden = unet.conv_in(2 * latents - 1 if unet.config.center_input_sample else latents)
    walk = _Walk(hidden, time, context, attend, recompute=gradient_checkpointing)
    for stage in unet.down_blocks:
        yield from walk.down(stage)
    yield from walk.middle(unet.mid_block)
    for stage in unet.up_blocks:
        yield from walk.up(stage)
    yield BODY, walk.hidden


class _Walk:
    """Where a walk stands: the hidden map, the skip connections, the number of the last attention layer."""

    def __init__(
        self, hidden: Tensor, time: Tensor, context: Tensor, attend: Attend, *, recompute: bool
    ) -> None:
        self.hidden, self.time, self.context = hidden, time, context
        self.attend, self.recompute = attend, recompute
        self.skips = [hidden]
        self.number = 0

    def down(self, stage: Any) -> Iterator[tuple[int, Tensor]]:
        for index, resnet in enumerate(stage.resnets):
            self._run(resnet, self.hidden, self.time)
            if hasattr(stage, "attentions"):
                yield self._attend(stage.attentions[index])
            self.skips.append(self.hidden)
        for downsampler in stage.downsamplers or ():
            self.hidden = downsampler(self.hidden)
            self.skips.append(self.hidden)

    def middle(self, stage: Any) -> Iterator[tuple[int, Tensor]]:
        self._run(stage.resnets[0], self.hidden, self.time)
        for attention, resnet in zip(stage.attentions, stage.resnets[1:], strict=True):
            yield self._attend(attention)
            self._run(resnet, self.hidden, self.time)

    def up(self, stage: Any) -> Iterator[tuple[int, Tensor]]:
        for index, resnet in enumerate(stage.resnets):
            self._run(resnet, torch.cat([self.hidden, self.skips.pop()], dim=1), self.time)
            if hasattr(stage, "attentions"):
                yield self._attend(stage.attentions[index])
        for upsampler in stage.upsamplers or ():
            self.hidden = upsampler(self.hidden)

    def _attend(self, layer: Any) -> tuple[int, Tensor]:
        self.number += 1
        self._run(self.attend, self.number, layer, self.hidden, self.context)
        return self.number, self.hidden

    def _run(self, function: Callable[..., Tensor], *arguments: Any) -> None:
        if self.recompute and torch.is_grad_enabled():
            self.hidden = checkpoint(function, *arguments, use_reentrant=False)
        else:
            self.hidden = function(*arguments)


def embed_timesteps(unet: Any, timesteps: Tensor, *, dtype: torch.dtype) -> Tensor:
    """The time embedding `B,E` of timesteps `B`; the sinusoid is computed in fp32."""
    return unet.time_embedding(unet.time_proj(timesteps).to(dtype=dtype))


def finish_unet(unet: Any, body: Tensor) -> Tensor:
    """The UNet's output layers: normalisation, activation, convolution. `B,C,h,w -> B,out,h,w`."""
    if unet.conv_norm_out is not None:
        body = unet.conv_act(unet.conv_norm_out(body))
    return unet.conv_out(body)


def drop_after(unet: Any, path: str) -> None:
    """Drop the up blocks and output layers that nothing up to the layer at `path` needs, to save memory.

    `path` is a `ldznet.blocks.Block.path`. The way down and the middle stay whole.
    """
    stage, index, _, layer = path.split(".") if path.startswith("up_blocks") else ("", "-1", "", "-1")
    keep = int(index) + 1
    unet.up_blocks = nn.ModuleList(unet.up_blocks[:keep])
    if stage:
        last = unet.up_blocks[-1]
        last.upsamplers = None
        last.resnets = last.resnets[: int(layer) + 1]
        last.attentions = last.attentions[: int(layer) + 1]
    unet.conv_norm_out = unet.conv_act = unet.conv_out = None
