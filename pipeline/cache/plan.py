"""The shard plan: which members share a shard, and the identity that follows from it."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.member import Member
from pipeline.cache.member_table import MemberTable


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPlan:
    """One shard to be: its identity and its members in key order."""

    shard_id: str
    members: tuple[Member, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedShard:
    """A shard's identity, and its members as rows of the table, in key order."""

    shard_id: str
    rows: NDArray[np.int64]

    def plan(self, table: MemberTable) -> ShardPlan:
        """With the members themselves, ready to be computed."""
        return ShardPlan(shard_id=self.shard_id, members=table.members(self.rows))


def shard_id(spec_key: str, keys: NDArray[np.uint64]) -> str:
    """Hash of the numeric specification and the member keys `N,2` in their order: 32 hexadecimal digits."""
    hasher = hashlib.sha256(spec_key.encode())
    hasher.update(keys.astype(">u8").tobytes())
    return hasher.hexdigest()[:32]


def plan_shards(
    table: MemberTable, *, spec_key: str, samples_per_shard: int, rows: NDArray[np.int64] | None = None
) -> Iterator[PlannedShard]:
    """Cut members into shards of about `samples_per_shard`, whole images together.

    Images go by the hash of their content, so a shard is a random draw of the data set; an image's samples stay
    in one shard, so its latents are computed once. Within a shard, members go by key: neighbours are unrelated.

    Args:
        table: the members.
        spec_key: of the numeric specification.
        samples_per_shard: at most so many, unless one image has more.
        rows: of the members to cut, rising; None: all.
    """
    rows = np.arange(len(table)) if rows is None else rows
    images = table.images[rows]
    by_image = np.lexsort((images[:, 1], images[:, 0]))  # stable: key order within an image
    starts, ends = _cut(images[by_image], samples_per_shard)
    rows = rows[by_image]
    for start, end in zip(starts, ends, strict=True):
        chosen = np.sort(rows[start:end])
        yield PlannedShard(shard_id=shard_id(spec_key, table.keys[chosen]), rows=chosen)


def _cut(images: NDArray[np.uint64], samples_per_shard: int) -> tuple[list[int], list[int]]:
    """Start and end of each shard in members sorted by image `N,2`."""
    if not len(images):
        return [], []
    changes = np.flatnonzero((images[1:] != images[:-1]).any(axis=1)) + 1
    ends_of_images = np.append(changes, len(images))
    starts, ends = [0], []
    while True:
        # The last image that still fits; one that is too large by itself gets a shard of its own.
        fits = int(np.searchsorted(ends_of_images, starts[-1] + samples_per_shard, side="right")) - 1
        end = int(ends_of_images[max(fits, 0)])
        if end <= starts[-1]:
            end = int(ends_of_images[fits + 1])
        ends.append(end)
        if end == len(images):
            return starts, ends
        starts.append(end)
