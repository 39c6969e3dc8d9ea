"""What RGBNet, ZNet and LDZNet share: a UNet on the latents' grid, a head, and how they are kept on disk."""

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ldznet.blocks import Block, unet_blocks
from ldznet.errors import UserError
from ldznet.modeling.config import Kind, NetworkConfig
from ldznet.modeling.pretrained import load_weights, read_network_config, save_network
from ldznet.modeling.segmentation_head import SegmentationHead, initialise_head
from ldznet.unet_walk import BODY, Attend, attend_to_text, finish_unet, walk_unet


class SegmentationNetwork(nn.Module):
    """The base of all networks. Its UNet starts from the LDM's weights and always sees timestep 0.

    Every kind is called alike by keyword, `network(latents=…, context=…, features=…, images=…)`, and
    ignores what it does not use.
    """

    kind: ClassVar[Kind]
    inputs: ClassVar[frozenset[str]]
    """Which of `latents`, `features`, `images` the network uses."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        assert config.kind == self.kind, f"a {config.kind} configuration for {type(self).__name__}"
        from diffusers import UNet2DConditionModel

        self.config = config
        self.gradient_checkpointing = config.gradient_checkpointing
        self.unet: Any = UNet2DConditionModel(**config.unet.to_diffusers())
        self.head = SegmentationHead()
        initialise_head(self.head, self.unet.conv_out, config.head_init)
        self._blocks: dict[int, Block] = unet_blocks(self.unet)
        self._multiple = max(block.stride for block in self._blocks.values())

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks whose LDM features the network takes."""
        return self.config.fused_blocks

    def forward_body(self, latents: Tensor, context: Tensor, *, attend: Attend = attend_to_text) -> Tensor:
        """The UNet's last hidden map, before its output layers: `B,4,h,w -> B,C,h,w`.

        Raises:
            UserError: a latent side that is no multiple of 8, or a context of another width.
        """
        if any(side % self._multiple or not side for side in latents.shape[-2:]):
            raise UserError(
                f"latents of {tuple(latents.shape[-2:])}: sides must be multiples of {self._multiple}"
            )
        if context.shape[-1] != self.config.unet.cross_attention_dim:
            raise UserError(
                f"the text context is {context.shape[-1]} wide,"
                f" the network takes {self.config.unet.cross_attention_dim}"
            )
        if self.config.text == "none":
            context = torch.zeros_like(context)
        timesteps = torch.zeros(len(latents), dtype=torch.long, device=latents.device)
        checkpointing = self.gradient_checkpointing and self.training
        walk = walk_unet(
            self.unet, latents, timesteps, context, attend=attend, gradient_checkpointing=checkpointing
        )
        return next(hidden for number, hidden in walk if number == BODY)

    def forward_head(self, body: Tensor) -> Tensor:
        """`B,C,h,w -> B,1,8h,8w` logits."""
        return self.head(finish_unet(self.unet, body))

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `model.safetensors`, then `config.json` as the seal, into a folder."""
        return save_network(Path(folder), self.config, self.state_dict())

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Self:
        """Load what `save_pretrained` wrote, in evaluation mode.

        Raises:
            UserError: the folder is not ours, holds another kind of network, or tensors do not fit.
        """
        config = read_network_config(Path(folder))
        if config.kind != cls.kind:
            raise UserError(f"{folder} holds a {config.kind}, not a {cls.kind}")
        with torch.device("meta"):
            network = cls(config)
        load_weights(network, Path(folder), device=torch.device(device), dtype=dtype)
        return network.eval()
