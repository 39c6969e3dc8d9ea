"""What a batch is read from: small, and all that a worker process needs to know of a cache."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.cache.committed_shard import ShardReference
from pipeline.cache.index import Index


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRun:
    """Neighbouring samples of a shard: one ranged GET, and one for each of the shard's columns."""

    shard: ShardReference
    rows: Index
    column_rows: tuple[Index, ...] = ()

    @property
    def size(self) -> int:
        """Bytes to read."""
        return sum(int(rows["size"].sum()) for rows in (self.rows, *self.column_rows))

    def parts(self, *, most: int) -> Iterator["SampleRun"]:
        """The run in parts of about `most` bytes, so that several are on their way at once."""
        sizes = sum(rows["size"].astype(np.int64) for rows in (self.rows, *self.column_rows))
        part = (np.cumsum(sizes) - 1) // most
        for rows in np.split(np.arange(len(self.rows)), np.flatnonzero(np.diff(part)) + 1):
            chosen = slice(int(rows[0]), int(rows[-1]) + 1)
            yield SampleRun(
                shard=self.shard,
                rows=self.rows[chosen],
                column_rows=tuple(column[chosen] for column in self.column_rows),
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """A rank's share of one global batch. Without runs it is padding alone."""

    size: int  # rows of the batch; those that the runs do not fill are padding
    runs: tuple[SampleRun, ...]

    @property
    def bytes(self) -> int:
        """To be read."""
        return sum(run.size for run in self.runs)
