"""What the autoencoder trains on: every step new scenes, and the noise that samples their posteriors."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.draws import draw_generator
from pipeline.pretraining.scene_stream import SceneStream


def images_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Pixels `B,H,W,3` in 0..255 -> `B,3,H,W` float32 in [-1,1], channels last in memory."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def torch_generator(*parts: str | int) -> torch.Generator:
    """A torch generator that is a pure function of its parts."""
    return torch.Generator().manual_seed(int(draw_generator(*parts).integers(2**62)))


@dataclass(frozen=True, kw_only=True)
class AutoencoderBatches:
    """Step n takes the scenes `n * batch_size` and following: this rank's share of them."""

    stream: SceneStream
    seed: int
    batch_size: int
    crop: int | None = None  # pixels a side of the random part of each image that is taken; None: all of it
    rank: int = 0
    ranks: int = 1

    def from_step(self, step: int) -> Iterator[dict[str, Tensor]]:
        """`images` `B,3,H,W` and `noise` `B,4,H/8,W/8` of step `step` and all that follow."""
        numbers = (
            range(each * self.batch_size + self.rank, (each + 1) * self.batch_size, self.ranks)
            for each in count(step)
        )
        side = (self.crop or self.stream.config.size) // 8
        for each, scenes in zip(count(step), self.stream.batches(numbers)):
            generator = torch_generator("posterior", self.seed, each)
            noise = torch.randn((self.batch_size, 4, side, side), generator=generator)
            corners = torch.rand((self.batch_size, 2), generator=generator)
            images = self._cropped(images_tensor(scenes.images), corners[self.rank :: self.ranks])
            yield {"images": images, "noise": noise[self.rank :: self.ranks]}

    def _cropped(self, images: Tensor, corners: Tensor) -> Tensor:
        """`B,3,H,W -> B,3,crop,crop`, the top left corners given in [0,1)."""
        crop = self.crop
        if crop is None:
            return images
        places = (corners * (images.shape[-1] - crop + 1)).long().tolist()
        parts = [
            image[:, top : top + crop, left : left + crop]
            for image, (top, left) in zip(images, places, strict=True)
        ]
        return torch.stack(parts).contiguous(memory_format=torch.channels_last)
