"""The order of samples: a pure function of (seed, epoch), whatever the number of ranks or workers.

A shard holds its samples in hash order. An epoch cuts each shard into windows of a few neighbours, at a phase drawn
anew each epoch so that neighbours do not stay together, and permutes all windows. A window is one ranged GET.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.draws import draw_generator

Remainder = Literal["drop", "pad"]
PADDING = -1


def epoch_order(shard_sizes: NDArray[np.int64], *, seed: int, epoch: int, window: int) -> NDArray[np.int64]:
    """Index rows in the epoch's order: each row exactly once."""
    generator = draw_generator("epoch order", seed, epoch)
    starts, lengths = _windows(shard_sizes, generator.integers(0, window, size=len(shard_sizes)), window)
    shuffled = generator.permutation(len(starts))
    starts, lengths = starts[shuffled], lengths[shuffled]
    ends = np.cumsum(lengths)
    offsets = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
    return np.repeat(starts, lengths) + offsets


def _windows(
    shard_sizes: NDArray[np.int64], phases: NDArray[np.int64], window: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    starts: list[NDArray[np.int64]] = []
    lengths: list[NDArray[np.int64]] = []
    first = 0
    for size, phase in zip(shard_sizes.tolist(), phases.tolist(), strict=True):
        cuts = np.unique(np.concatenate([[0], np.arange(phase, size, window), [size]]))
        starts.append(first + cuts[:-1])
        lengths.append(np.diff(cuts))
        first += size
    if not starts:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate(starts), np.concatenate(lengths)


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """Where a loader stands: the next global batch of an epoch. A few bytes, the same for all ranks."""

    epoch: int = 0
    batch: int = 0


def batches_in_epoch(samples: int, *, batch_size: int, remainder: Remainder) -> int:
    """How many global batches an epoch has."""
    return samples // batch_size if remainder == "drop" else -(-samples // batch_size)


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
