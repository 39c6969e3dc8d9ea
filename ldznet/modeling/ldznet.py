"""LD-ZNet: ZNet with the frozen LDM's features fused into its attention layers (paper, section 4.2)."""

from typing import Any, ClassVar

from torch import Tensor, nn

from ldznet.blocks import check_blocks
from ldznet.modeling.config import Kind, NetworkConfig
from ldznet.modeling.fusion import ConcatFusion, CrossAttentionFusion, attend_with_fusion, check_feature
from ldznet.modeling.network import SegmentationNetwork
from ldznet.unet_walk import attend_to_text


class LDZNet(SegmentationNetwork):
    """ZNet plus one fusion at each fused block: cross-attention to the pooled feature, or concatenation.

    Raises:
        UserError: a fused block that the UNet does not have.
    """

    kind: ClassVar[Kind] = "ldznet"
    inputs: ClassVar[frozenset[str]] = frozenset({"latents", "features"})

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.fusion = nn.ModuleDict()
        for number in check_blocks(config.blocks, self._blocks):
            block = self._blocks[number]
            if config.fusion == "concat":
                self.fusion[str(number)] = ConcatFusion(block)
            else:
                grid = max(1, config.positional_latent_side // block.stride)
                self.fusion[str(number)] = CrossAttentionFusion(
                    block, grid=grid, positional=config.positional
                )

    def forward(
        self,
        latents: Tensor,
        context: Tensor,
        features: dict[int, Tensor] | None = None,
        images: Tensor | None = None,  # noqa: ARG002 - all kinds are called alike
    ) -> Tensor:
        """Mask logits.

        Args:
            latents: `B,4,h,w`, scaled `z` without noise; h and w multiples of 8.
            context: `B,77,D` text encoder's last hidden state.
            features: `{block number: B,C,h_b,w_b}` from `FrozenLDM.block_features`; more blocks than are
                fused do no harm.
            images: not used.

        Returns:
            `B,1,8h,8w` logits.

        Raises:
            UserError: sizes that the UNet does not take, or a fused block's feature missing or misshaped.
        """
        return self.forward_head(self.forward_fused_body(latents, context, features))

    def forward_fused_body(
        self, latents: Tensor, context: Tensor, features: dict[int, Tensor] | None
    ) -> Tensor:
        """The UNet's last hidden map with the features fused in: `B,4,h,w -> B,C,h,w`."""

        def attend(number: int, layer: Any, hidden: Tensor, text: Tensor) -> Tensor:
            if str(number) not in self.fusion:
                return attend_to_text(number, layer, hidden, text)
            fusion = self.fusion[str(number)]
            assert isinstance(fusion, CrossAttentionFusion | ConcatFusion)
            feature = check_feature(features, self._blocks[number], hidden)
            return attend_with_fusion(layer, hidden, text, fusion, feature)

        return self.forward_body(latents, context, attend=attend)
