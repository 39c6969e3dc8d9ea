"""The shard plan: which members share a shard, and the identity that follows from it."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from pipeline.cache.member import Member


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPlan:
    """One shard to be: its identity and its members in key order."""

    shard_id: str
    members: tuple[Member, ...]


def shard_id(spec_key: str, member_keys: Iterable[str]) -> str:
    """Hash of the numeric specification and the ordered member keys: 32 hexadecimal digits."""
    hasher = hashlib.sha256(spec_key.encode())
    for key in member_keys:
        hasher.update(b"\0" + key.encode())
    return hasher.hexdigest()[:32]


def plan_shards(members: Iterable[Member], *, spec_key: str, samples_per_shard: int) -> list[ShardPlan]:
    """Cut members into shards of about `samples_per_shard`, whole images together.

    Images go by the hash of their content, so a shard is a random draw of the data set; an image's samples stay
    in one shard, so its latents are computed once. Within a shard, members go by key: neighbours are unrelated.
    """
    by_image = sorted(members, key=lambda member: (member.image_digest, member.key))
    plans: list[ShardPlan] = []
    open_shard: list[Member] = []

    def close() -> None:
        ordered = tuple(sorted(open_shard, key=lambda member: member.key))
        identity = shard_id(spec_key, (member.key for member in ordered))
        plans.append(ShardPlan(shard_id=identity, members=ordered))
        open_shard.clear()

    for _, group in groupby(by_image, key=lambda member: member.image_digest):
        image_members = list(group)
        if open_shard and len(open_shard) + len(image_members) > samples_per_shard:
            close()
        open_shard.extend(image_members)
    if open_shard:
        close()
    return plans
