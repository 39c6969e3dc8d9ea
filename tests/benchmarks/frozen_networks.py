"""Stable Diffusion's frozen networks with random weights, in memory: how quick they are does not depend on the weights.

`SD_1_4` are the sizes of CompVis/stable-diffusion-v1-4; others keep its topology.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ldznet.frozen_ldm import FrozenLDM
from ldznet.importer_ldm import sd_scheduler
from ldznet.unet_walk import finish_unet, walk_unet

TOKENS = 77


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Widths and depths of the three networks."""

    unet: tuple[int, int, int, int] = (320, 640, 1280, 1280)
    heads: int = 8
    vae: tuple[int, int, int, int] = (128, 256, 512, 512)
    vae_depth: int = 2
    norm_groups: int = 32
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    vocabulary: int = 49408


SD_1_4 = Sizes()
# A fifth of SD 1.4's widths on 192 px: much the same proportions of work as SD's at 384 px, and runs of seconds.
FIFTH = Sizes(
    unet=(64, 128, 256, 256), vae=(24, 48, 96, 96), norm_groups=8, text_width=192, text_layers=4, text_heads=4
)  # fmt: skip
FIFTH_PIXELS = 192
TINY = Sizes(
    unet=(8, 8, 16, 16), heads=2, vae=(4, 4, 8, 8), vae_depth=1, norm_groups=4, text_width=16, text_layers=1,
    text_heads=2, vocabulary=600,
)  # fmt: skip


class NumberedWords:
    """Stands in for the tokenizer: what a prompt's tokens are does not change how long a pass takes."""

    def __init__(self, vocabulary: int) -> None:
        self.model_max_length = TOKENS
        self._vocabulary = vocabulary

    def __call__(self, prompts: list[str], **_: object) -> Any:
        ids = torch.zeros(len(prompts), TOKENS, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            for column, word in enumerate(prompt.split()[:TOKENS]):
                ids[row, column] = sum(map(ord, word)) % self._vocabulary
        return _Encoded(input_ids=ids)


@dataclass(frozen=True, slots=True)
class _Encoded:
    input_ids: Tensor


def make_ldm(
    folder: Path,
    sizes: Sizes,
    *,
    dtype: torch.dtype,
    device: str = "cpu",
    whole: bool = True,
    channels_last: bool = False,
    compiled: bool = False,
) -> FrozenLDM:
    """The frozen LDM with random weights of `dtype`; `folder` gets its configurations and no weights.

    Args:
        folder: an empty folder.
        sizes: of the networks.
        dtype: of weights and activations.
        device: where they go.
        whole: all three networks; else the UNet alone.
        channels_last: see `FrozenLDM.from_pretrained`.
        compiled: likewise.
    """
    with torch.device("meta"):
        unet, vae, text = empty_unet(sizes), _empty_vae(sizes), _empty_text_encoder(sizes)
    for name, part in (("unet", unet), ("vae", vae)):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(dict(part.config)))
    sd_scheduler().save_pretrained(folder / "scheduler")
    target = torch.device(device)
    return FrozenLDM(
        folder=folder,
        unet=_filled(unet, dtype, target),
        vae=_filled(vae, dtype, target) if whole else None,
        text_encoder=_filled(text, dtype, target) if whole else None,
        tokenizer=NumberedWords(sizes.vocabulary) if whole else None,
        device=target,
        dtype=dtype,
        channels_last=channels_last,
        compiled=compiled,
    )


def empty_unet(sizes: Sizes) -> Any:
    """The UNet; on `meta` when called under `torch.device("meta")`."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=sizes.unet,
        cross_attention_dim=sizes.text_width,
        attention_head_dim=sizes.heads,  # diffusers' name for the number of heads
        norm_num_groups=sizes.norm_groups,
    )


def _empty_vae(sizes: Sizes) -> Any:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        sample_size=512,
        block_out_channels=sizes.vae,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=sizes.vae_depth,
        latent_channels=4,
        norm_num_groups=min(sizes.norm_groups, *sizes.vae),
    )
    vae.decoder = vae.post_quant_conv = None  # as FrozenLDM loads it
    return vae


def _empty_text_encoder(sizes: Sizes) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.text_width,
        intermediate_size=4 * sizes.text_width,
        projection_dim=sizes.text_width,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=sizes.text_heads,
        bos_token_id=sizes.vocabulary - 2,
        eos_token_id=sizes.vocabulary - 1,
        pad_token_id=sizes.vocabulary - 1,
        attn_implementation="sdpa",
    )
    return CLIPTextModel(config)


@torch.no_grad()
def _filled(network: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Weights straight in their type, small enough that activations stay finite through all layers."""
    network = nn.Module.to(network, dtype).to_empty(device=device)  # the library's own `to` warns
    norms = {id(part.weight) for part in network.modules() if isinstance(part, nn.GroupNorm | nn.LayerNorm)}
    for parameter in network.parameters():
        if id(parameter) in norms:
            parameter.fill_(1)
        elif parameter.ndim == 1:
            parameter.zero_()
        else:
            parameter.normal_(std=0.5 / parameter[0].numel() ** 0.5)
    for name, buffer in network.named_buffers():
        assert name.endswith("position_ids"), f"{name} would be left empty"
        buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    return network.eval().requires_grad_(requires_grad=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Counted floating-point operations of one pass of each network, by `torch.utils.flop_counter`."""

    vae: float  # an image
    text: float  # a prompt
    stopped: float  # the UNet up to the last block wanted, a sample
    unet: float  # the whole UNet, a sample


def counted_work(sizes: Sizes, *, pixels: int, last_block: int = 10) -> Work:
    """Count the work of each network on the `meta` device, for one sample of `pixels` by `pixels`."""
    with torch.device("meta"), torch.no_grad():
        unet, vae, text = empty_unet(sizes), _empty_vae(sizes), _empty_text_encoder(sizes)
        z = torch.empty(1, 4, pixels // 8, pixels // 8)
        steps, context = torch.zeros(1, dtype=torch.long), torch.empty(1, TOKENS, sizes.text_width)

        def stopped() -> None:
            for number, _ in walk_unet(unet, z, steps, context):
                if number == last_block:
                    return

        return Work(
            vae=_flops(lambda: vae.encode(torch.empty(1, 3, pixels, pixels))),
            text=_flops(lambda: text(torch.zeros(1, TOKENS, dtype=torch.long))),
            stopped=_flops(stopped),
            unet=_flops(lambda: finish_unet(unet, dict(walk_unet(unet, z, steps, context))[0])),
        )


def _flops(call: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())
