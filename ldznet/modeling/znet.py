"""ZNet: text-based segmentation from the image's latents alone (paper, section 4.1)."""

from typing import ClassVar

from torch import Tensor

from ldznet.modeling.config import Kind
from ldznet.modeling.network import SegmentationNetwork


class ZNet(SegmentationNetwork):
    """The LDM's UNet, trained to segment `z` without noise; text enters by cross-attention."""

    kind: ClassVar[Kind] = "znet"
    inputs: ClassVar[frozenset[str]] = frozenset({"latents"})

    def forward(
        self,
        latents: Tensor,
        context: Tensor,
        features: dict[int, Tensor] | None = None,  # noqa: ARG002 - all kinds are called alike
        images: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Mask logits.

        Args:
            latents: `B,4,h,w`, scaled `z`; h and w multiples of 8.
            context: `B,77,D` text encoder's last hidden state.
            features: not used.
            images: not used.

        Returns:
            `B,1,8h,8w` logits.

        Raises:
            UserError: sizes that the UNet does not take.
        """
        return self.forward_head(self.forward_body(latents, context))
