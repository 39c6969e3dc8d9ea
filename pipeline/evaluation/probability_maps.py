"""Predictions of a batch, given out at any size: probabilities that a pixel is the phrase's."""

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


class ProbabilityMaps(Protocol):
    """What a system predicts for the samples of one batch."""

    def at(self, row: int, *, height: int, width: int) -> Tensor:
        """One sample's probabilities at a size in px, `1,1,H,W`: fp32 in [0,1], or bool from masks."""
        ...


class LogitMaps:
    """Predictions of a network: logits are resized bilinearly, then go through the sigmoid."""

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits.detach().float().cpu()  # B,1,h,w

    def at(self, row: int, *, height: int, width: int) -> Tensor:
        """See `ProbabilityMaps.at`."""
        logits = self._logits[row : row + 1]
        if logits.shape[-2:] != (height, width):
            logits = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
        return torch.sigmoid(logits)


class PlainMaps:
    """Predictions that some system made: masks are resized to the nearest pixel, probabilities bilinearly."""

    def __init__(self, maps: list[NDArray[np.bool_] | NDArray[np.float32]]) -> None:
        self._maps = maps  # one a sample, H,W each

    def at(self, row: int, *, height: int, width: int) -> Tensor:
        """See `ProbabilityMaps.at`."""
        one = self._maps[row]
        if one.dtype == np.bool_:
            rows = (2 * np.arange(height) + 1) * one.shape[0] // (2 * height)  # the pixel under the centre
            columns = (2 * np.arange(width) + 1) * one.shape[1] // (2 * width)
            return torch.from_numpy(one[np.ix_(rows, columns)])[None, None]
        tensor = torch.from_numpy(one)[None, None]  # H,W -> 1,1,H,W
        if one.shape != (height, width):
            tensor = F.interpolate(tensor, size=(height, width), mode="bilinear", align_corners=False)
        return tensor.clamp(0, 1)
