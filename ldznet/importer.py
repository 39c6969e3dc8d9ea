"""From other people's checkpoints to our folders: the authors' networks, and the LDM in such files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldznet.blocks import unet_blocks
from ldznet.errors import UserError
from ldznet.importer_checkpoint import load_state_dict
from ldznet.importer_ldm import CLIP_TOKENIZER, FROZEN_UNET_PREFIX, write_ldm_folder
from ldznet.importer_names import network_module_names, translate, unet_module_names
from ldznet.modeling.build import NETWORKS
from ldznet.modeling.config import NetworkConfig, UNetConfig
from ldznet.modeling.network import SegmentationNetwork
from ldznet.modeling.pretrained import check_tensors

NETWORK_PREFIX = "model.diffusion_model."
EMA_PREFIX = "model_ema."
_COMPVIS_KEYS = {
    "in_channels": 4,
    "model_channels": 320,
    "channel_mult": (1, 2, 4, 4),
    "num_res_blocks": 2,
    "attention_resolutions": (4, 2, 1),
    "num_heads": 8,
    "context_dim": 768,
    "transformer_depth": 1,
}
_COMPVIS_IGNORED = ("image_size", "out_channels", "use_spatial_transformer", "use_checkpoint", "legacy")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportReport:
    """What an import wrote."""

    folder: Path
    kind: str  # "ldznet", "znet", or "frozen LDM"
    tensors: int
    from_ema: int
    ldm_folder: Path | None = None

    def __str__(self) -> str:
        ldm = f"; frozen LDM -> {self.ldm_folder}" if self.ldm_folder else ""
        return (
            f"{self.kind} -> {self.folder}: {self.tensors} tensors, {self.from_ema} of them EMA weights{ldm}"
        )


def import_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    *,
    unet_config: str | Path | Mapping[str, Any] | None = None,
    ldm_out: str | Path | None = None,
    tokenizer: str | Path = CLIP_TOKENIZER,
) -> ImportReport:
    """Turn a checkpoint into one of our folders. Nothing in the file is executed.

    The authors' LD-ZNet or ZNet checkpoint becomes a network folder at `out` (EMA weights where it has them),
    and its frozen LDM a second folder if `ldm_out` is given. An original-format SD v1 checkpoint becomes a
    frozen-LDM folder at `out`.

    Args:
        checkpoint: `.ckpt`, `.pt`, `.pth` or `.safetensors`.
        out: folder to write.
        unet_config: CompVis's UNet parameters (a mapping or a JSON file) for other than SD v1's size.
        ldm_out: where the frozen LDM inside the authors' checkpoint goes; None leaves it out.
        tokenizer: folder or hub id of CLIP's tokenizer, which no such checkpoint holds; for frozen LDMs only.

    Raises:
        UserError: an unreadable or hostile file, or a tensor that is missing, extra or misshaped.
    """
    state, unet = load_state_dict(checkpoint), read_unet_config(unet_config)
    where = str(checkpoint)
    if not any(name.startswith(f"{NETWORK_PREFIX}final.") for name in state):
        if not any(name.startswith(NETWORK_PREFIX) for name in state):
            raise UserError(
                f"checkpoint {where} holds no '{NETWORK_PREFIX}*': neither LD-ZNet's nor Stable Diffusion's"
            )
        weights, from_ema = prefer_ema(state)
        unet_model = frozen_unet_from_state_dict(
            weights, unet_config=unet, prefix=NETWORK_PREFIX, where=where
        )
        folder = write_ldm_folder(Path(out), unet_model, weights, tokenizer=tokenizer, where=where)
        return ImportReport(folder=folder, kind="frozen LDM", tensors=len(weights), from_ema=from_ema)
    network = network_from_state_dict(state, unet_config=unet, where=where)
    _, from_ema = prefer_ema(state)
    ldm_folder = None
    if ldm_out is not None:
        frozen = frozen_unet_from_state_dict(state, unet_config=unet, where=where)
        ldm_folder = write_ldm_folder(Path(ldm_out), frozen, state, tokenizer=tokenizer, where=where)
    return ImportReport(
        folder=network.save_pretrained(out),
        kind=network.kind,
        tensors=len(network.state_dict()),
        from_ema=from_ema,
        ldm_folder=ldm_folder,
    )


def read_unet_config(source: str | Path | Mapping[str, Any] | None) -> UNetConfig:
    """CompVis's UNet parameters (`model_channels`, `context_dim`, …) as ours; None is SD v1's.

    Raises:
        UserError: an unreadable file, an unknown key, or a UNet unlike Stable Diffusion's.
    """
    if isinstance(source, str | Path):
        try:
            source = json.loads(Path(source).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"UNet configuration {source} cannot be read as JSON ({error})") from None
        if not isinstance(source, dict):
            raise UserError("the UNet configuration holds no JSON object")
        source = source.get("unet", source)  # the reference file keeps it under "unet"
    assert isinstance(source, Mapping | None)
    given = dict(source or {})
    for key in given:
        if key not in _COMPVIS_KEYS and key not in _COMPVIS_IGNORED:
            raise UserError(f"UNet configuration: unknown key '{key}'; known are {', '.join(_COMPVIS_KEYS)}")
    values = {**_COMPVIS_KEYS, **given}
    channels = tuple(values["model_channels"] * factor for factor in values["channel_mult"])
    strides = [2**level for level in range(len(channels))]
    attends = [stride in values["attention_resolutions"] for stride in strides]
    if values["transformer_depth"] != 1:
        raise UserError("UNet configuration: transformer_depth must be 1, as in Stable Diffusion")
    return UNetConfig(
        in_channels=values["in_channels"],
        block_out_channels=channels,
        layers_per_block=values["num_res_blocks"],
        down_block_types=tuple("CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
        cross_attention_dim=values["context_dim"],
        attention_head_dim=values["num_heads"],  # diffusers' name for the number of heads
    )


def prefer_ema(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """The state dict with the network's weights replaced by their EMA copies, and how many were.

    The EMA copy of `model.diffusion_model.a.b` is `model_ema.diffusion_modelab`: the dots are removed.
    """
    result, replaced = dict(state), 0
    for name in state:
        if name.startswith("model."):
            average = state.get(EMA_PREFIX + name.removeprefix("model.").replace(".", ""))
            if average is not None:
                result[name] = average
                replaced += 1
    return result, replaced


def network_from_state_dict(
    state: Mapping[str, Tensor],
    *,
    unet_config: UNetConfig | Mapping[str, Any] | None = None,
    where: str = "the state dict",
) -> SegmentationNetwork:
    """Our LDZNet or ZNet with the weights of a state dict in the authors' names, in evaluation mode.

    Which blocks are fused, and the grid of the positional embedding, are read from the tensors.

    Raises:
        UserError: names the tensors that are missing, extra or misshaped.
    """
    unet = unet_config if isinstance(unet_config, UNetConfig) else read_unet_config(unet_config)
    weights, _ = prefer_ema(state)
    theirs = {n.removeprefix(NETWORK_PREFIX): t for n, t in weights.items() if n.startswith(NETWORK_PREFIX)}
    config = _detect(theirs, unet)
    with torch.device("meta"):
        network = NETWORKS[config.kind](config)
    modules = network_module_names(network)
    _fill(network, {name: translate(name, modules) for name in network.state_dict()}, theirs, where=where)
    return network.eval()


def _detect(theirs: Mapping[str, Tensor], unet: UNetConfig) -> NetworkConfig:
    """The configuration that a network's tensors tell of."""
    with torch.device("meta"):
        probe = NETWORKS["znet"](NetworkConfig(kind="znet", unet=unet))
    modules = unet_module_names(probe.unet)
    fused, side = [], 0
    for number, block in unet_blocks(probe.unet).items():
        embedding = theirs.get(f"{modules[block.path]}.attentionpool2D.positional_embedding")
        if embedding is not None:
            fused.append(number)
            side = max(side, block.stride * round((embedding.shape[-1] - 1) ** 0.5))
    if not fused:
        return NetworkConfig(kind="znet", unet=unet)
    return NetworkConfig(kind="ldznet", unet=unet, blocks=tuple(fused), positional_latent_side=side)


def frozen_unet_from_state_dict(
    state: Mapping[str, Tensor],
    *,
    unet_config: UNetConfig | Mapping[str, Any] | None = None,
    prefix: str = FROZEN_UNET_PREFIX,
    where: str = "the state dict",
) -> Any:
    """The frozen diffusers `UNet2DConditionModel` inside a state dict with CompVis's names under `prefix`.

    Raises:
        UserError: names the tensors that are missing, extra or misshaped.
    """
    from diffusers import UNet2DConditionModel

    config = unet_config if isinstance(unet_config, UNetConfig) else read_unet_config(unet_config)
    theirs = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    with torch.device("meta"):
        unet = UNet2DConditionModel(**{**config.to_diffusers(), "out_channels": config.in_channels})
    modules = {**unet_module_names(unet)}
    _fill(
        unet,
        {name: translate(name, modules) for name in unet.state_dict()},
        theirs,
        where=f"{where} ({prefix}*)",
    )
    return unet.eval().requires_grad_(requires_grad=False)


def _fill(
    module: torch.nn.Module, names: Mapping[str, str], theirs: Mapping[str, Tensor], *, where: str
) -> None:
    """Give a module on `meta` its weights; `names` is `{ours: theirs}`. Faults are told in their names."""
    expected = {names[name]: tensor for name, tensor in module.state_dict().items()}
    check_tensors(expected, theirs, where=where)
    state = {name: theirs[their_name].float().clone() for name, their_name in names.items()}
    module.load_state_dict(state, assign=True)
