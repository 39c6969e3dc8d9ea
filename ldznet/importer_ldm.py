"""An original-format Stable Diffusion v1 state dict as a frozen-LDM folder in the diffusers layout."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ldznet.errors import UserError
from ldznet.ldm_folder import TOKENIZER_FILES, check_ldm_folder, download_snapshot
from ldznet.modeling.pretrained import check_tensors

CLIP_TOKENIZER = "openai/clip-vit-large-patch14"
FROZEN_UNET_PREFIX = "sd_features_stage_model.model.model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer."
_HEAD_WIDTH = 64  # of CLIP's text transformers


def write_ldm_folder(
    folder: Path, unet: Any, state: Mapping[str, Tensor], *, tokenizer: str | Path, where: str
) -> Path:
    """Write `unet`, and the first stage and text encoder of a state dict, as a frozen-LDM folder.

    Args:
        folder: replaced as a whole, at the end.
        unet: a diffusers `UNet2DConditionModel`.
        state: a state dict with `first_stage_model.*` and `cond_stage_model.transformer.*`.
        tokenizer: folder or hub id of CLIP's tokenizer.
        where: what the state dict is called in errors.

    Raises:
        UserError: a part is missing from the state dict, tensors do not fit, or the tokenizer cannot be had.
    """
    vae, text_encoder = (
        vae_from_state_dict(state, where=where),
        text_encoder_from_state_dict(state, where=where),
    )
    source = _tokenizer_folder(tokenizer)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        made = Path(temporary) / "ldm"
        unet.save_pretrained(made / "unet")
        vae.save_pretrained(made / "vae")
        text_encoder.config.save_pretrained(made / "text_encoder")
        save_file(
            text_encoder.state_dict(), made / "text_encoder" / "model.safetensors", metadata={"format": "pt"}
        )
        (made / "tokenizer").mkdir()
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, made / "tokenizer" / name)
        sd_scheduler().save_pretrained(made / "scheduler")
        check_ldm_folder(made)
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
    return folder


def sd_scheduler() -> Any:
    """Stable Diffusion's noise schedule: 1000 steps, `scaled_linear` 0.00085 to 0.012."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
    )


def vae_from_state_dict(state: Mapping[str, Tensor], *, where: str = "the state dict") -> Any:
    """The diffusers `AutoencoderKL` of a state dict's `first_stage_model.*`, sized as its tensors are.

    Raises:
        UserError: there is none, or tensors do not fit.
    """
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    theirs = {name: tensor for name, tensor in state.items() if name.startswith(VAE_PREFIX)}
    if f"{VAE_PREFIX}encoder.conv_in.weight" not in theirs:
        raise UserError(f"{where} holds no first stage ('{VAE_PREFIX}*'), which a frozen LDM needs")
    levels = _count(theirs, VAE_PREFIX + "encoder.down.{}.block.0.conv2.weight")
    config = {
        "block_out_channels": [
            theirs[f"{VAE_PREFIX}encoder.down.{level}.block.0.conv2.weight"].shape[0]
            for level in range(levels)
        ],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": _count(theirs, VAE_PREFIX + "encoder.down.0.block.{}.conv2.weight"),
        "latent_channels": theirs[f"{VAE_PREFIX}post_quant_conv.weight"].shape[0],
        "scaling_factor": 0.18215,
    }
    converted = convert_ldm_vae_checkpoint(theirs, config)
    with torch.device("meta"):
        vae = AutoencoderKL(**config)
    return _filled(vae, converted, where=f"{where} ({VAE_PREFIX}*)")


def text_encoder_from_state_dict(state: Mapping[str, Tensor], *, where: str = "the state dict") -> Any:
    """The `CLIPTextModel` of a state dict's `cond_stage_model.transformer.*`, sized as its tensors are.

    Raises:
        UserError: there is none (SD 2.x keeps another encoder there), or tensors do not fit.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    prefix = f"{TEXT_PREFIX}text_model."
    theirs = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    theirs.pop("embeddings.position_ids", None)  # a counter, not a weight
    words = theirs.get("embeddings.token_embedding.weight")
    if words is None:
        raise UserError(
            f"{where} holds no CLIP text encoder ('{prefix}*'); SD 2.x is taken in the diffusers layout only"
        )
    tokens, width = words.shape
    config = CLIPTextConfig(
        vocab_size=tokens,
        hidden_size=width,
        intermediate_size=theirs["encoder.layers.0.mlp.fc1.weight"].shape[0],
        projection_dim=width,
        num_hidden_layers=_count(theirs, "encoder.layers.{}.mlp.fc1.weight"),
        num_attention_heads=max(1, width // _HEAD_WIDTH),
        max_position_embeddings=theirs["embeddings.position_embedding.weight"].shape[0],
        bos_token_id=tokens - 2,
        eos_token_id=tokens - 1,
        pad_token_id=tokens - 1,
    )
    encoder = CLIPTextModel(config)
    encoder.config.architectures = ["CLIPTextModel"]
    check_tensors(encoder.state_dict(), theirs, where=f"{where} ({prefix}*)")
    encoder.load_state_dict({name: tensor.float() for name, tensor in theirs.items()})
    return encoder.eval()


def _filled(module: torch.nn.Module, state: Mapping[str, Tensor], *, where: str) -> Any:
    check_tensors(module.state_dict(), state, where=where)
    module.load_state_dict({name: tensor.float().clone() for name, tensor in state.items()}, assign=True)
    return module.eval()


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    number = 0
    while pattern.format(number) in state:
        number += 1
    return number


def _tokenizer_folder(tokenizer: str | Path) -> Path:
    folder = Path(tokenizer).expanduser()
    if not folder.is_dir():
        folder = download_snapshot(str(tokenizer), patterns=list(TOKENIZER_FILES), what="tokenizer")
    return folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
