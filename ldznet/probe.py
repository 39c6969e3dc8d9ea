"""A small decoder that reads one block's features at one timestep: how much of a mask is in them. Paper, figure 4.

The paper names neither its decoder nor its training: this one is two convolutions, the same for every block but for
the width that it reads, so that blocks differ in what they hold and in their resolution.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldznet.loss import mask_loss


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeTraining:
    """How a probe is trained."""

    steps: int = 400
    batch_size: int = 32
    lr: float = 2e-3
    weight_decay: float = 0.01
    hidden: int = 64
    seed: int = 0


class ProbeDecoder(nn.Module):
    """Features `B,C,h,w` -> logits `B,1,side,side`."""

    def __init__(self, *, channels: int, hidden: int, side: int) -> None:
        """Random weights from torch's generator.

        Args:
            channels: of the features.
            hidden: width between the two convolutions.
            side: of the logits.
        """
        super().__init__()
        self.side = side
        self.normalise = nn.GroupNorm(1, channels)  # blocks differ in scale by orders of magnitude
        self.read = nn.Conv2d(channels, hidden, 1)
        self.refine = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.decide = nn.Conv2d(hidden, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Logits."""
        hidden = F.silu(self.read(self.normalise(features)))
        hidden = F.interpolate(hidden, size=(self.side, self.side), mode="bilinear", align_corners=False)
        return self.decide(F.silu(self.refine(hidden)))


def train_probe(features: Tensor, masks: Tensor, training: ProbeTraining) -> ProbeDecoder:
    """A decoder trained on samples in memory. Equal arguments give equal weights on one machine and thread count.

    Args:
        features: `N,C,h,w`, any float type.
        masks: `N,1,side,side` in [0,1]: the share of each cell that the phrase names.
        training: how.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        decoder = ProbeDecoder(channels=features.shape[1], hidden=training.hidden, side=masks.shape[-1])
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=training.lr, weight_decay=training.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, training.steps)
    weight = torch.ones(min(training.batch_size, len(features)))
    for rows in _batches(len(features), training):
        optimiser.zero_grad(set_to_none=True)
        loss = mask_loss(decoder(features[rows].float()), masks[rows], weight)
        loss.backward()
        optimiser.step()
        schedule.step()
    return decoder.eval()


@torch.inference_mode()
def probe_logits(decoder: ProbeDecoder, features: Tensor, *, batch_size: int = 64) -> Iterator[Tensor]:
    """Logits `B,1,side,side` of samples in memory, batch by batch."""
    for start in range(0, len(features), batch_size):
        yield decoder(features[start : start + batch_size].float())


def _batches(samples: int, training: ProbeTraining) -> Iterator[Sequence[int]]:
    """Rows of each step: epoch after epoch in an order drawn from the seed, whole batches only."""
    generator = np.random.Generator(np.random.PCG64(training.seed))
    size = min(training.batch_size, samples)
    waiting: list[int] = []
    for _ in range(training.steps):
        if len(waiting) < size:
            waiting = generator.permutation(samples).tolist()
        yield waiting[:size]
        waiting = waiting[size:]
