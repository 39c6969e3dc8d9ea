"""A miniature frozen LDM: Stable Diffusion's topology at small width with fixed random weights, untrained.

It stands in for Stable Diffusion where that cannot be had: every part has the real layout and is read by the
same code, but the features know nothing of the world.
"""

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from pydantic import PositiveInt
from safetensors.torch import save_file
from torch import Tensor, nn

from ldznet.config import Config
from ldznet.importer_ldm import sd_scheduler
from ldznet.miniature_tokenizer import build_tokenizer
from ldznet.prompts import TEMPLATES

SD_SCALING_FACTOR = 0.18215
_POSTERIOR_LOGVAR = -8.0  # posterior std 0.018 before scaling: small beside the means, as in Stable Diffusion
# Output layers of residual branches: smaller, so that depth does not make activations grow.
_BRANCH_ENDS = (
    ".conv2.weight",
    ".to_out.0.weight",
    ".ff.net.2.weight",
    ".proj_out.weight",
    ".fc2.weight",
    ".out_proj.weight",
)
# The first stage mostly averages, as images demand: latents then keep colours and shapes.
_FIRST_STAGE_CONVOLUTIONS = ("encoder.conv_in", "encoder.down_blocks")
_ATTENTION_INPUTS = (".to_q.weight", ".to_k.weight", ".q_proj.weight", ".k_proj.weight")


class MiniatureConfig(Config):
    """Widths of the miniature. The topology (16 spatial-attention layers, stride-8 latents) is fixed."""

    seed: int = 0
    block_out_channels: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (32, 64, 128, 128)
    attention_heads: PositiveInt = 4
    norm_groups: PositiveInt = 8
    context_width: PositiveInt = 64
    text_layers: PositiveInt = 2
    text_heads: PositiveInt = 4
    vocabulary_size: PositiveInt = 4096
    vae_channels: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (8, 16, 32, 32)


def build_miniature_ldm(folder: str | Path, *, config: MiniatureConfig, phrases: Iterable[str]) -> Path:
    """Build the miniature and save it in the diffusers layout. The same arguments give the same bytes.

    Args:
        folder: where it goes; replaced as a whole, at the end.
        config: widths and seed.
        phrases: what the tokenizer's vocabulary is learned from (prompt templates are added).

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        made = Path(temporary) / "ldm"
        tokens = build_tokenizer(
            made / "tokenizer", [*TEMPLATES, *phrases], vocabulary_size=config.vocabulary_size
        )
        _build_unet(config).save_pretrained(made / "unet")
        _build_vae(config).save_pretrained(made / "vae")
        _save_text_encoder(_build_text_encoder(config, tokens), made / "text_encoder")
        sd_scheduler().save_pretrained(made / "scheduler")
        _write_model_index(made)
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
    return folder


def _save_text_encoder(encoder: Any, folder: Path) -> None:
    """As `save_pretrained` does, without its progress bar."""
    encoder.config.architectures = ["CLIPTextModel"]
    encoder.config.save_pretrained(folder)
    save_file(encoder.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})


def _build_unet(config: MiniatureConfig) -> Any:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=config.block_out_channels,
        cross_attention_dim=config.context_width,
        attention_head_dim=config.attention_heads,  # diffusers' name for the number of heads
        norm_num_groups=config.norm_groups,
    )
    return _initialise(unet, seed=config.seed, salt="unet")


def _build_text_encoder(config: MiniatureConfig, tokens: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    text = CLIPTextConfig(
        vocab_size=tokens,
        hidden_size=config.context_width,
        intermediate_size=4 * config.context_width,
        projection_dim=config.context_width,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_heads,
        bos_token_id=tokens - 2,
        eos_token_id=tokens - 1,
        pad_token_id=tokens - 1,
    )
    return _initialise(CLIPTextModel(text), seed=config.seed, salt="text_encoder")


def _build_vae(config: MiniatureConfig) -> Any:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        sample_size=128,
        block_out_channels=config.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=min(config.norm_groups, *config.vae_channels),
        scaling_factor=SD_SCALING_FACTOR,
    )
    return _whiten_latents(_initialise(vae, seed=config.seed, salt="vae"), seed=config.seed)


def _write_model_index(folder: Path) -> None:
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_untrained": True,  # for those who report on it; diffusers passes over it
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(
        json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


@torch.no_grad()
def _initialise(model: nn.Module, *, seed: int, salt: str) -> Any:
    """Give every parameter a value that its name and the seed decide (NumPy: equal on every machine)."""
    norms = {
        f"{name}.weight"
        for name, part in model.named_modules()
        if isinstance(part, nn.GroupNorm | nn.LayerNorm)
    }
    for name, parameter in model.named_parameters():
        random = np.random.Generator(np.random.PCG64([seed, crc32(f"{salt}.{name}".encode())]))
        values = torch.from_numpy(random.standard_normal(tuple(parameter.shape), dtype=np.float32))
        parameter.copy_(_scaled(name, values, is_norm=name in norms))
    return model.eval()


def _scaled(name: str, values: Tensor, *, is_norm: bool) -> Tensor:
    if is_norm:
        return 1 + 0.1 * values
    if values.ndim == 1:
        return 0.05 * values
    if "embedding.weight" in name:
        return values if "token" in name else 0.3 * values  # which word it is outweighs where it stands
    fan_in = float(values[0].numel())
    gain = 1.0
    if values.ndim == 4 and name.startswith(_FIRST_STAGE_CONVOLUTIONS):
        values = 0.25 * values + 2.5 * values.mean(dim=(2, 3), keepdim=True)
    if name.endswith(_BRANCH_ENDS):
        gain = 0.5
    elif name.endswith(_ATTENTION_INPUTS):
        gain = 1.5  # attention that prefers some positions, instead of a plain mean
    return gain / fan_in**0.5 * values


@torch.no_grad()
def _whiten_latents(vae: Any, *, seed: int) -> Any:
    """Set `quant_conv` so that latent channels have zero mean, unit std and no correlation on smooth noise.

    In float64 and rounded to 1e-4, so that thread counts and machines do not change the weights.
    """
    encoder = vae.encoder.double()
    moments = encoder(_smooth_noise(seed).double())[:, :4]
    values = moments.permute(0, 2, 3, 1).reshape(-1, 4)  # B,4,h,w -> N,4
    covariance = torch.cov(values.T)
    scales, axes = torch.linalg.eigh(covariance)
    whitening = axes @ torch.diag(scales.clamp_min(1e-12).rsqrt()) @ axes.T / SD_SCALING_FACTOR
    weight, bias = torch.zeros(8, 8, 1, 1), torch.full((8,), _POSTERIOR_LOGVAR)
    weight[:4, :4, 0, 0] = _rounded(whitening)
    bias[:4] = _rounded(-whitening @ values.mean(dim=0))
    vae.quant_conv.weight.copy_(weight)
    vae.quant_conv.bias.copy_(bias)
    vae.encoder = encoder.float()
    return vae


def _rounded(values: Tensor) -> Tensor:
    return (values * 1e4).round().div(1e4).float()


def _smooth_noise(seed: int, *, count: int = 8, side: int = 128) -> Tensor:
    """Images `count,3,side,side` in [-1,1] with detail at every scale, in place of photos."""
    random = np.random.Generator(np.random.PCG64([seed, crc32(b"calibration")]))
    images = torch.zeros(count, 3, side, side, dtype=torch.float64)
    for cells in (2, 4, 8, 16, 32, 64):
        noise = torch.from_numpy(random.standard_normal((count, 3, cells, cells)))
        images += nn.functional.interpolate(noise, size=(side, side), mode="bilinear") / cells**0.5
    return torch.tanh(images)
