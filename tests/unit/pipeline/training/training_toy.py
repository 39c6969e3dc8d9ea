"""A tiny network and data for training tests: a few thousand weights, learnable in a few dozen steps."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.loading.batch import Batch
from pipeline.loading.sample_order import Position


class ToyNetwork(nn.Module):
    """Latents and a summary of the context -> logits, with shapes that do not divide evenly among ranks."""

    def __init__(self, seed: int = 0, *, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.into = nn.Conv2d(4, 13, 3, padding=1)
        self.text = nn.Linear(6, 13)
        self.drop = nn.Dropout(dropout)
        self.norm = nn.GroupNorm(1, 13)
        self.out = nn.Conv2d(13, 1, 3, padding=1)

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        hidden = self.into(latents) + self.text(context.mean(1))[:, :, None, None]
        return self.out(self.drop(F.silu(self.norm(hidden))))


def forward(network: nn.Module, batch: Batch) -> Tensor:
    return network(batch.latents, batch.context)


def loss(logits: Tensor, masks: Tensor, weight: Tensor) -> Tensor:
    each = F.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean(dim=(1, 2, 3))
    return (each * weight).sum() / weight.sum().clamp(min=1)


def toy_batch(first: int, size: int, *, padding: int = 0) -> Batch:
    """Samples `first ..` of an endless data set; the mask is where channel 0 beats channel 1."""
    latents = torch.stack(
        [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(first + i)) for i in range(size)]
    )
    context = torch.stack(
        [torch.randn(5, 6, generator=torch.Generator().manual_seed(9999 + first + i)) for i in range(size)]
    )
    weight = torch.ones(size)
    weight[size - padding :] = 0
    return Batch(
        keys=tuple(f"sample-{first + i}" for i in range(size)),
        latents=latents,
        context=context,
        features={},
        masks=(latents[:, :1] > latents[:, 1:2]).float(),
        weight=weight,
    )


class ToySource:
    """Epochs of batches for one rank: the global batch cut into equal shares."""

    def __init__(self, *, batch_size: int, rank: int, ranks: int, batches: int = 8) -> None:
        self.share, self.batch_size, self.rank, self.batches = batch_size // ranks, batch_size, rank, batches

    def __len__(self) -> int:
        return self.batches

    def epoch(self, position: Position) -> Iterator[Batch]:
        for batch in range(position.batch, self.batches):
            start = (position.epoch * self.batches + batch) * self.batch_size
            yield toy_batch(start + self.rank * self.share, self.share)
