"""What probes read: every sample's features of some blocks at one timestep, in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.cache.entry import Entry
from pipeline.cache.stored_type import dequantise
from pipeline.loading.loader import SampleReader
from pipeline.loading.sample_order import contiguous_runs

_READ_AT_ONCE = 64  # samples


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeSamples:
    """The samples of one set at one timestep, N of them."""

    features: dict[int, Tensor]  # block -> N,C,h,w
    masks: Tensor  # N,1,H,W bool
    image_ids: list[str]

    @classmethod
    def read(cls, reader: SampleReader, rows: NDArray[np.int64], *, blocks: Sequence[int]) -> "ProbeSamples":
        """Read rows of a manifest's index. Memory holds the chosen blocks' features in their stored type."""
        features: dict[int, list[Tensor]] = {block: [] for block in blocks}
        masks: list[Tensor] = []
        image_ids: list[str] = []
        for entry in _entries(reader, rows):
            for block in blocks:
                features[block].append(_plain(entry, block))
            masks.append(torch.from_numpy(entry.mask))
            image_ids.append(str(entry.facts["image_digest"]))
        return cls(
            features={block: torch.stack(parts) for block, parts in features.items()},
            masks=torch.stack(masks).unsqueeze(1),
            image_ids=image_ids,
        )

    def targets(self, side: int) -> Tensor:
        """The share of each cell that is the phrase's, `N,1,side,side` in [0,1]."""
        return F.interpolate(self.masks.float(), size=(side, side), mode="area")


def _entries(reader: SampleReader, rows: NDArray[np.int64]) -> Iterator[Entry]:
    for start in range(0, len(rows), _READ_AT_ONCE):
        for run in contiguous_runs(rows[start : start + _READ_AT_ONCE], reader.index["shard"]):
            yield from reader.read_run(run)


def _plain(entry: Entry, block: int) -> Tensor:
    values = entry.features[block]
    if block not in entry.scales:
        return values
    whole = dequantise(values.unsqueeze(0), entry.scales[block].unsqueeze(0), dtype=torch.float16)
    return whole.squeeze(0)
