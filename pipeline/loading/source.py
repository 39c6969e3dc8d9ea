"""What a training or a validation takes its batches from, whatever makes them."""

from collections.abc import Iterator
from typing import Protocol

from pipeline.loading.batch import Batch
from pipeline.loading.sample_order import Position


class BatchSource(Protocol):
    """This rank's share of every global batch, in an order fixed by the epoch: read from a cache, or computed."""

    def __len__(self) -> int:
        """Global batches in an epoch, equal on every rank."""
        ...

    def epoch(self, position: Position) -> Iterator[Batch]:
        """The rest of an epoch from a position."""
        ...
