"""RGBNet: the baseline that sees the image instead of its latents (paper, section 4.1)."""

from typing import ClassVar

from torch import Tensor, nn

from ldznet.errors import UserError
from ldznet.modeling.config import Kind, NetworkConfig
from ldznet.modeling.network import SegmentationNetwork


class RGBNet(SegmentationNetwork):
    """ZNet's architecture behind learnable convolutions that bring the image to the latents' resolution.

    Three 3x3 convolutions of stride 2, then one to the UNet's input channels; their number and strides are
    unconfirmed by any source.
    """

    kind: ClassVar[Kind] = "rgbnet"
    inputs: ClassVar[frozenset[str]] = frozenset({"images"})

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        layers: list[nn.Module] = []
        channels = 3
        for width in config.stem_channels:
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.SiLU()]
            channels = width
        layers.append(nn.Conv2d(channels, config.unet.in_channels, 3, padding=1))
        self.stem = nn.Sequential(*layers)
        for layer in self.stem:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias) if layer.bias is not None else None

    def forward(
        self,
        images: Tensor | None = None,
        context: Tensor | None = None,
        features: dict[int, Tensor] | None = None,  # noqa: ARG002 - all kinds are called alike
        latents: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Mask logits.

        Args:
            images: `B,3,H,W` in [-1,1]; H and W multiples of 64.
            context: `B,77,D` text encoder's last hidden state.
            features: not used.
            latents: not used.

        Returns:
            `B,1,H,W` logits.

        Raises:
            UserError: no images were given, or sizes that the UNet does not take.
        """
        if images is None or context is None:
            raise UserError("RGBNet takes images and a text context; the cache must keep images (RGB) for it")
        return self.forward_head(self.forward_body(self.stem(images), context))
