"""The shard plan: which members share a shard, and the identity that follows from it."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.member import Member
from pipeline.cache.member_table import MemberTable, PackedMembers


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPlan:
    """One shard to be: its identity and its members in key order."""

    shard_id: str
    members: tuple[Member, ...]
    draw: int = 0

    def __len__(self) -> int:
        """Members."""
        return len(self.members)

    def unpack(self) -> "ShardPlan":
        """Itself: see `PackedPlan`."""
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedPlan:
    """A shard plan on its way to another process."""

    shard_id: str
    members: PackedMembers
    draw: int = 0

    def __len__(self) -> int:
        """Members."""
        return len(self.members)

    def unpack(self) -> ShardPlan:
        """The plan."""
        return ShardPlan(shard_id=self.shard_id, members=tuple(self.members.unpack()), draw=self.draw)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedShard:
    """A shard's identity, and its members as rows of the table, in key order.

    All are of one draw; where a grid of timesteps makes the draws, all draws lie together and count as draw 0.
    """

    shard_id: str
    rows: NDArray[np.int64]
    draw: int = 0

    def plan(self, table: MemberTable) -> ShardPlan:
        """With the members themselves, ready to be computed."""
        return ShardPlan(shard_id=self.shard_id, members=table.members(self.rows), draw=self.draw)

    def pack(self, table: MemberTable) -> PackedPlan:
        """With the members' records, ready to be sent."""
        return PackedPlan(shard_id=self.shard_id, members=table.pack(self.rows), draw=self.draw)


def shard_id(spec_key: str, keys: NDArray[np.uint64]) -> str:
    """Hash of the numeric specification and the member keys `N,2` in their order: 32 hexadecimal digits."""
    hasher = hashlib.sha256(spec_key.encode())
    hasher.update(keys.astype(">u8").tobytes())
    return hasher.hexdigest()[:32]


def plan_shards(
    table: MemberTable,
    *,
    spec_key: str,
    samples_per_shard: int,
    rows: NDArray[np.int64] | None = None,
    together: bool = False,
) -> Iterator[PlannedShard]:
    """Cut members into shards of about `samples_per_shard`, draw by draw, whole images together.

    Images go by the hash of their content, so a shard is a random part of the data set; an image's samples of one
    draw stay in one shard, so its latents are computed once. Within a shard, members go by key: neighbours are
    unrelated. A shard holds one draw only, so that an epoch reads one draw of each sample and nothing else.

    Args:
        table: the members.
        spec_key: of the numeric specification.
        samples_per_shard: at most so many, unless one image has more.
        rows: of the members to cut, rising; None: all.
        together: the draws of a grid of timesteps, which share their latents, stay in one shard.
    """
    rows = np.arange(len(table)) if rows is None else rows
    draws = np.zeros(len(rows), np.uint8) if together else table.draws[rows]
    for draw in np.unique(draws).tolist():
        for chosen in _cut_one_draw(table, rows[draws == draw], samples_per_shard):
            yield PlannedShard(shard_id=shard_id(spec_key, table.keys[chosen]), rows=chosen, draw=draw)


def _cut_one_draw(
    table: MemberTable, rows: NDArray[np.int64], samples_per_shard: int
) -> Iterator[NDArray[np.int64]]:
    """Rows of the table, shard by shard, each in key order."""
    images = table.images[rows]
    by_image = np.lexsort((images[:, 1], images[:, 0]))  # stable: key order within an image
    starts, ends = _cut(images[by_image], samples_per_shard)
    rows = rows[by_image]
    for start, end in zip(starts, ends, strict=True):
        yield np.sort(rows[start:end])


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
