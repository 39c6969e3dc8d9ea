"""A small latent diffusion model's networks, fresh: Stable Diffusion's topology, diffusers' own classes."""

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, PositiveInt
from safetensors.torch import save_file
from torch import Tensor, nn

from ldznet.config import Config
from ldznet.importer_ldm import sd_scheduler

FourWidths = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]


class LdmSizes(Config):
    """Widths of the networks. The topology (16 spatial-attention layers, stride-8 latents of 4 channels) is fixed."""

    autoencoder_channels: FourWidths = (16, 32, 64, 64)
    autoencoder_layers: PositiveInt = 1  # ResNets a level on the way down; one more on the way up
    autoencoder_groups: PositiveInt = 4  # of its group norms
    unet_channels: FourWidths = (32, 64, 128, 128)
    unet_heads: FourWidths = (
        1,
        2,
        4,
        4,
    )  # attention heads a level; Stable Diffusion 2's are 64 wide, 1's 8 in number
    unet_groups: PositiveInt = 8
    context_width: PositiveInt = 64
    text_layers: PositiveInt = 2
    text_heads: PositiveInt = 4
    vocabulary_size: int = Field(default=2048, ge=514)  # upper limit, with 512 byte tokens and 2 special ones


def build_autoencoder(sizes: LdmSizes, *, image_side: int, seed: int) -> Any:
    """An `AutoencoderKL` with random weights. Its `scaling_factor` is 1 until it is trained and measured."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKL(
            sample_size=image_side,
            block_out_channels=sizes.autoencoder_channels,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=sizes.autoencoder_layers,
            latent_channels=4,
            norm_num_groups=sizes.autoencoder_groups,
            scaling_factor=1.0,
        )


def build_unet(sizes: LdmSizes, *, latent_side: int, seed: int) -> Any:
    """A `UNet2DConditionModel` with random weights and an output layer of zeros: it begins by estimating no noise."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=latent_side,
            block_out_channels=sizes.unet_channels,
            cross_attention_dim=sizes.context_width,
            attention_head_dim=sizes.unet_heads,  # diffusers' name for the number of heads
            norm_num_groups=sizes.unet_groups,
        )
    for tensor in unet.conv_out.parameters():
        nn.init.zeros_(tensor)
    return unet


def build_text_encoder(sizes: LdmSizes, *, tokens: int, seed: int) -> Any:
    """A `CLIPTextModel` with random weights. The last two tokens are begin and end of text; the end pads."""
    from transformers import CLIPTextConfig, CLIPTextModel

    width = sizes.context_width
    config = CLIPTextConfig(
        vocab_size=tokens,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=sizes.text_heads,
        bos_token_id=tokens - 2,
        eos_token_id=tokens - 1,
        pad_token_id=tokens - 1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPTextModel(config)


def save_autoencoder(autoencoder: Any, folder: Path, *, scaling_factor: float) -> None:
    """Save the first stage as `folder/vae`, with the factor that gives its latents unit standard deviation."""
    autoencoder.register_to_config(scaling_factor=scaling_factor)
    autoencoder.save_pretrained(folder / "vae")


def save_text_encoder(encoder: Any, folder: Path) -> None:
    """Save it as `folder/text_encoder`, as `save_pretrained` does, without its progress bar."""
    encoder.config.architectures = ["CLIPTextModel"]
    encoder.config.save_pretrained(folder / "text_encoder")
    state: dict[str, Tensor] = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    save_file(state, folder / "text_encoder" / "model.safetensors", metadata={"format": "pt"})


def save_unet(unet: Any, folder: Path, *, largest_file: str = "5GB") -> None:
    """Save the UNet as `folder/unet`, its schedule as `folder/scheduler`, and the index that names all parts."""
    unet.save_pretrained(folder / "unet", max_shard_size=largest_file)
    sd_scheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / "model_index.json").write_text(text, encoding="utf-8")
