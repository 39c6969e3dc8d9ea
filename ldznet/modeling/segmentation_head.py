"""The head that brings a one-channel map on the latents' grid to mask logits at the image's size."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_IDENTITY_SHIFT = 3.0  # SiLU is close to the identity up here


class OneChannelConv(nn.Conv2d):
    """A 3x3 convolution of one channel, as nine shifted sums in fp32 on a CPU.

    The library's kernels, made for many channels, take some five times as long there, forward and backward. The
    result is equal but for rounding. On a GPU, and in bf16, which sums would round nine times, it is the library's.
    """

    def __init__(self) -> None:
        super().__init__(1, 1, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that the class has it by
        """`B,1,h,w -> B,1,h,w`."""
        if not input.is_cpu or {input.dtype, self.weight.dtype} != {torch.float32}:
            return super().forward(input)
        assert self.bias is not None
        height, width = input.shape[-2:]
        padded, kernel = F.pad(input, (1, 1, 1, 1)), self.weight[0, 0]
        total = self.bias.view(1, 1, 1, 1)
        for top in range(3):
            for left in range(3):
                shifted = padded[..., top : top + height, left : left + width]
                total = torch.addcmul(total, shifted, kernel[top, left])
        return total


class SegmentationHead(nn.Module):
    """SiLU, conv3, then three times [SiLU, transposed conv x2, SiLU, conv3]; one channel throughout.

    Paper, section 4.1; layer order as in the authors' code.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.SiLU(), OneChannelConv()]
        for _ in range(3):
            layers += [
                nn.SiLU(),
                nn.ConvTranspose2d(1, 1, 2, stride=2),
                nn.SiLU(),
                OneChannelConv(),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, hidden: Tensor) -> Tensor:
        """`B,1,h,w -> B,1,8h,8w` logits."""
        return self.layers(hidden)

    @property
    def convolutions(self) -> list[nn.Conv2d | nn.ConvTranspose2d]:
        """The layers with parameters, in order."""
        return [layer for layer in self.layers if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]


@torch.no_grad()
def initialise_head(head: SegmentationHead, conv_out: nn.Conv2d, how: Literal["identity", "default"]) -> None:
    """Start the head and the convolution before it.

    Eight SiLUs in a row on one channel let next to nothing through under PyTorch's default initialisation.
    `identity` starts as nearest-neighbour upsampling: a bias lifts the map to where SiLU is almost linear,
    and the last bias takes the lift out again.
    """
    if how == "default" or conv_out.weight.is_meta:
        return
    assert conv_out.bias is not None
    conv_out.bias.fill_(_IDENTITY_SHIFT)
    for layer in head.convolutions:
        assert layer.bias is not None
        layer.bias.zero_()
        if isinstance(layer, nn.ConvTranspose2d):
            layer.weight.fill_(1.0)
        else:
            layer.weight.zero_()
            layer.weight[:, :, 1, 1] = 1.0
    lift = torch.tensor(_IDENTITY_SHIFT)
    for _ in head.convolutions:
        lift = nn.functional.silu(lift)
    last = head.convolutions[-1]
    assert last.bias is not None
    last.bias.sub_(lift)
