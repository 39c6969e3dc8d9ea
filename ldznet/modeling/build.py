"""Make any of the networks: from a configuration, from a saved folder, from the LDM's weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ldznet.ldm_folder import read_part_config, resolve_ldm, weight_files
from ldznet.modeling.config import Kind, NetworkConfig, UNetConfig
from ldznet.modeling.ldznet import LDZNet
from ldznet.modeling.network import SegmentationNetwork
from ldznet.modeling.pretrained import read_network_config
from ldznet.modeling.rgbnet import RGBNet
from ldznet.modeling.znet import ZNet

NETWORKS: dict[Kind, type[SegmentationNetwork]] = {"ldznet": LDZNet, "znet": ZNet, "rgbnet": RGBNet}


def build_network(config: NetworkConfig, *, device: str | torch.device = "cpu") -> SegmentationNetwork:
    """A new network with random weights (seed with `torch.manual_seed`); `device="meta"` allocates nothing.

    Raises:
        UserError: a fused block that the UNet does not have.
    """
    with torch.device(device):
        return NETWORKS[config.kind](config)


def network_from_pretrained(
    folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> SegmentationNetwork:
    """Load a saved network of whatever kind, in evaluation mode.

    Raises:
        UserError: the folder is not ours, or tensors do not fit.
    """
    kind = read_network_config(Path(folder)).kind
    return NETWORKS[kind].from_pretrained(folder, device=device, dtype=dtype)


def unet_config_of(ldm: str | Path) -> UNetConfig:
    """The configuration of a frozen LDM's UNet, for a network that shall start from it.

    Raises:
        UserError: no such LDM, or a UNet unlike Stable Diffusion 1.x and 2.x.
    """
    return UNetConfig.from_diffusers(read_part_config(resolve_ldm(ldm), "unet"))


@dataclass(frozen=True, kw_only=True, slots=True)
class InitialisationReport:
    """Which of a network's tensors came from the LDM."""

    copied: tuple[str, ...]
    new: tuple[str, ...]
    copied_parameters: int
    new_parameters: int

    def __str__(self) -> str:
        return (
            f"copied {len(self.copied)} tensors ({self.copied_parameters / 1e6:.2f} M parameters)"
            f" from the LDM, left {len(self.new)} new ({self.new_parameters / 1e6:.2f} M)"
        )


@torch.no_grad()
def initialise_from_ldm(network: SegmentationNetwork, ldm: str | Path | nn.Module) -> InitialisationReport:
    """Copy every UNet tensor whose name and shape agree; the rest of the network stays as it is.

    Args:
        network: a network with real weights (not on `meta`).
        ldm: folder or hub id of a frozen LDM, or a diffusers UNet.

    Raises:
        UserError: no such LDM.
    """
    state = network.state_dict()
    source = _unet_tensors(ldm, set(state))
    copied = [name for name in state if name in source and source[name].shape == state[name].shape]
    for name in copied:
        state[name].copy_(source[name])
    new = [name for name in state if name not in set(copied)]
    return InitialisationReport(
        copied=tuple(copied),
        new=tuple(new),
        copied_parameters=sum(state[name].numel() for name in copied),
        new_parameters=sum(state[name].numel() for name in new),
    )


def _unet_tensors(ldm: str | Path | nn.Module, wanted: set[str]) -> dict[str, Tensor]:
    """The LDM UNet's tensors under the network's names (`unet.…`), only those that are wanted."""
    if isinstance(ldm, nn.Module):
        return {f"unet.{name}": tensor for name, tensor in ldm.state_dict().items()}
    tensors: dict[str, Any] = {}
    for path in weight_files(resolve_ldm(ldm), "unet"):
        with safe_open(path, framework="pt") as file:
            names = [name for name in set(file.keys()) if f"unet.{name}" in wanted]
            tensors.update({f"unet.{name}": file.get_tensor(name) for name in names})
    return tensors
