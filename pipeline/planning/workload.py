"""What a set's missing shards take: members, photos, views, prompts, objects to read. Annotations alone are read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.cache.member import Member
from pipeline.cache.spec import CacheSpec
from pipeline.precompute.increment import PlannedWork
from pipeline.precompute.preparation import draw_prompt_and_timestep, members_by_image
from pipeline.precompute.sets import SetPlan

COUNTED_MEMBERS: Final = 20_000  # from so many on, other shards are taken to be like those counted
_SAMPLES_A_READ: Final = 8  # of a conversion


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardCounts:
    """One shard to compute, as far as annotations tell."""

    members: int
    photos: int
    views: int  # at most: draws may give equal views, and a view that no phrase lies in is not encoded
    prompts: int  # distinct
    objects: int  # of the data set, to be read


@dataclass(frozen=True, kw_only=True, slots=True)
class Passes:
    """Passes of the frozen networks, each of one fixed batch shape."""

    vae: int
    text: int
    unet: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Shards to commit under one specification: computed from data, or converted from another stored type."""

    set_name: str
    spec: CacheSpec
    shard_members: tuple[int, ...]  # of every shard
    converted: bool
    reads: int  # ranged GETs of what is converted
    counted: tuple[ShardCounts, ...]  # every shard, or an even choice of them

    @property
    def shards(self) -> int:
        """To commit."""
        return len(self.shard_members)

    @property
    def members(self) -> int:
        """Of all shards."""
        return sum(self.shard_members)

    @property
    def exact(self) -> bool:
        """Whether every shard was counted."""
        return self.converted or len(self.counted) == self.shards

    @property
    def photos(self) -> int:
        """Photos to decode, once a shard."""
        return self._scaled(sum(shard.photos for shard in self.counted))

    @property
    def objects(self) -> int:
        """Objects of the data set to read."""
        return self._scaled(sum(shard.objects for shard in self.counted))

    @property
    def prompts(self) -> int:
        """Distinct prompts, counted in each shard."""
        return self._scaled(sum(shard.prompts for shard in self.counted))

    def views(self, view_share: float) -> int:
        """Views to encode, given the share of the most there can be."""
        return self._scaled(sum(shard.views for shard in self.counted) * view_share)

    def passes(self, *, view_share: float, kept_share: float) -> Passes:
        """Passes of the networks, shard by shard: the last one of each is padded.

        Args:
            view_share: distinct views of the most there can be.
            kept_share: members that are not left out.
        """
        features = self.spec.features
        return Passes(
            vae=self._passes([shard.views * view_share for shard in self.counted], features.image_batch),
            text=self._passes([shard.prompts for shard in self.counted], features.prompt_batch),
            unet=self._passes([shard.members * kept_share for shard in self.counted], features.feature_batch),
        )

    def _passes(self, rows: Sequence[float], batch: int) -> int:
        return self._scaled(sum(math.ceil(round(one, 6) / batch) for one in rows))

    def _scaled(self, count: float) -> int:
        counted = sum(shard.members for shard in self.counted)
        return round(count * self.members / counted) if counted else 0


def count_work(plan: SetPlan, work: Sequence[PlannedWork], *, most: int = COUNTED_MEMBERS) -> list[Workload]:
    """The workloads of a set's missing shards, one a specification and kind of work.

    Args:
        plan: of the set.
        work: what of it is to be committed.
        most: members whose records are read, about: other shards are taken to be like theirs.
    """
    groups: dict[tuple[str, bool], list[PlannedWork]] = {}
    for one in work:
        groups.setdefault((one.spec.key, one.source is not None), []).append(one)
    return [_workload(plan, group, converted, most) for (_, converted), group in groups.items()]


def _workload(plan: SetPlan, work: Sequence[PlannedWork], converted: bool, most: int) -> Workload:  # noqa: FBT001 - the group's
    members = sum(len(one.shard.rows) for one in work)
    every = max(1, round(members / most))
    counted = () if converted else tuple(_count(plan, one) for one in work[::every])
    return Workload(
        set_name=plan.set_name,
        spec=work[0].spec,
        shard_members=tuple(len(one.shard.rows) for one in work),
        converted=converted,
        reads=sum(
            math.ceil(len(one.source.rows) / _SAMPLES_A_READ) * (1 + len(one.source.reference.columns))
            for one in work
            if one.source is not None
        ),
        counted=counted,
    )


def _count(plan: SetPlan, work: PlannedWork) -> ShardCounts:
    members = plan.table.members(work.shard.rows)
    groups = members_by_image(members)
    return ShardCounts(
        members=len(members),
        photos=len(groups),
        views=len({view_name(work.spec, member) for member in members}),
        prompts=len({_prompt(work.spec, member) for member in members}),
        objects=len(groups) + sum(len(member.sample.mask.objects()) for member in members),
    )


def view_name(spec: CacheSpec, member: Member) -> tuple[str, ...]:
    """Equal for members that the view policy lets share a view."""
    draw = str(spec.policy.view_draw(member.draw))
    match spec.policy.view.policy:
        case "squash":
            return (member.image_digest,)
        case "shared":
            return member.image_digest, draw
        case "published":
            return member.sample_id, draw


def _prompt(spec: CacheSpec, member: Member) -> str:
    prompt, _ = draw_prompt_and_timestep(spec.policy, seed=spec.features.seed, member=member)
    return prompt
