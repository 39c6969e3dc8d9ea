"""The order of samples: a pure function of (seed, epoch), whatever the number of ranks or workers.

A shard holds its samples in hash order. An epoch reads one draw of each sample: the shards of draw `epoch mod K`. It
cuts each of them into windows of a few neighbours, at a phase drawn anew each epoch so that neighbours do not stay
together, and permutes all windows. A window is one ranged GET.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.draws import draw_generator

Remainder = Literal["drop", "pad"]
PADDING = -1


def epoch_order(
    shard_sizes: NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
    window: int,
    firsts: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Index rows in the epoch's order: each row of the given shards exactly once.

    Args:
        shard_sizes: samples of each shard.
        seed: of the training.
        epoch: from 0.
        window: neighbours that stay together.
        firsts: the first row of each shard; None: one follows the other.
    """
    generator = draw_generator("epoch order", seed, epoch)
    if firsts is None:
        firsts = np.cumsum(shard_sizes) - shard_sizes
    phases = generator.integers(0, window, size=len(shard_sizes))
    starts, lengths = _windows(shard_sizes, phases, firsts, window)
    shuffled = generator.permutation(len(starts))
    return _runs(starts[shuffled], lengths[shuffled])


def _windows(
    sizes: NDArray[np.int64], phases: NDArray[np.int64], firsts: NDArray[np.int64], window: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First row and length of each window: one of `phase` rows, then whole ones, then the rest of the shard."""
    heads = np.minimum(phases, sizes)
    counts = (heads > 0) + -(-(sizes - heads) // window)
    number = _runs(np.zeros_like(counts), counts)  # of the window in its shard
    head, size, first = (np.repeat(each, counts) for each in (heads, sizes, firsts))
    number += head == 0  # then there is no window before the first cut
    begins = np.where(number == 0, 0, head + (number - 1) * window)
    ends = np.minimum(head + number * window, size)
    return first + begins, ends - begins


def _runs(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """`start, start + 1, …` of each length, one after the other."""
    ends = np.cumsum(lengths)
    rows = np.arange(ends[-1] if len(ends) else 0)
    rows += np.repeat(starts - (ends - lengths), lengths)
    return rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """Where a loader stands: the next global batch of an epoch. A few bytes, the same for all ranks."""

    epoch: int = 0
    batch: int = 0


def batches_in_epoch(samples: int, *, batch_size: int, remainder: Remainder) -> int:
    """How many global batches an epoch has."""
    return samples // batch_size if remainder == "drop" else -(-samples // batch_size)


class SizedShard(Protocol):
    """What the order needs to know of a shard."""

    @property
    def samples(self) -> int:
        """How many it holds."""
        ...

    @property
    def draw(self) -> int:
        """That of all of them."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleOrder:
    """Which rows of a list of shards each epoch reads, in which global batches. Reads nothing: arithmetic only.

    Shuffled, for training: epoch `e` reads draw `e mod K`. Draws may differ in size (a phrase may lie outside one
    draw's crop); every epoch has as many batches as the smallest draw gives. Not shuffled, for evaluation: draw 0,
    in the order of storage, each sample once.
    """

    sizes: NDArray[np.int64]  # samples of each shard, in the order of the index
    draws: NDArray[np.int64]  # its draw
    batch_size: int  # over all ranks
    seed: int = 0
    window: int = 8
    shuffle: bool = True
    remainder: Remainder = "drop"

    @classmethod
    def of(
        cls,
        shards: Iterable[SizedShard],
        *,
        batch_size: int,
        seed: int = 0,
        window: int = 8,
        shuffle: bool = True,
        remainder: Remainder = "drop",
    ) -> Self:
        """The order over a manifest's shards, or any that know their size and draw."""
        counted = [(shard.samples, shard.draw) for shard in shards]
        sizes, draws = np.array(counted, np.int64).reshape(-1, 2).T
        return cls(
            sizes=sizes,
            draws=draws,
            batch_size=batch_size,
            seed=seed,
            window=window,
            shuffle=shuffle,
            remainder=remainder,
        )

    @property
    def draw_count(self) -> int:
        """K: epochs until a draw comes again."""
        return int(self.draws.max(initial=0)) + 1 if self.shuffle else 1

    def draw_of(self, epoch: int) -> int:
        """The draw that an epoch reads."""
        return epoch % self.draw_count

    def samples_in(self, epoch: int) -> int:
        """How many samples the epoch's draw has."""
        return int(self.sizes[self.draws == self.draw_of(epoch)].sum())

    def __len__(self) -> int:
        """Global batches in an epoch, equal for all epochs and ranks."""
        fewest = min(self.samples_in(draw) for draw in range(self.draw_count))
        return batches_in_epoch(fewest, batch_size=self.batch_size, remainder=self.remainder)

    def rows(self, epoch: int) -> NDArray[np.int64]:
        """Index rows in the order of an epoch: each of its draw once."""
        chosen = self.draws == self.draw_of(epoch)
        sizes, firsts = self.sizes[chosen], (np.cumsum(self.sizes) - self.sizes)[chosen]
        if not self.shuffle:
            return _runs(firsts, sizes)
        return epoch_order(sizes, seed=self.seed, epoch=epoch, window=self.window, firsts=firsts)

    def shares(self, position: Position, *, rank: int, ranks: int) -> Iterator[NDArray[np.int64]]:
        """A rank's rows of each global batch from a position on; `PADDING` where the last batch runs short."""
        rows = self.rows(position.epoch)
        for batch in range(position.batch, len(self)):
            yield rank_share(rows, batch=batch, batch_size=self.batch_size, rank=rank, ranks=ranks)


def rank_share(
    order: NDArray[np.int64], *, batch: int, batch_size: int, rank: int, ranks: int
) -> NDArray[np.int64]:
    """The rows of one global batch that a rank takes; `PADDING` where the last batch runs short."""
    rows = order[batch * batch_size : (batch + 1) * batch_size]
    if len(rows) < batch_size:
        rows = np.concatenate([rows, np.full(batch_size - len(rows), PADDING, rows.dtype)])
    share = batch_size // ranks
    return rows[rank * share : (rank + 1) * share]


def contiguous_runs(rows: NDArray[np.int64], shards: NDArray[np.integer]) -> Iterator[NDArray[np.int64]]:
    """Split rows where they stop being neighbours in one shard: each run is one ranged GET."""
    if not len(rows):
        return
    breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(shards[rows].astype(np.int64)) != 0)) + 1
    yield from np.split(rows, breaks)
