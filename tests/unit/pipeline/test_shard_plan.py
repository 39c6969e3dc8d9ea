"""Members and the plan: ids from content, whole images together, each member in one shard."""

import random
from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from pipeline.cache.member import Member, list_members, member_key, sample_id
from pipeline.cache.plan import plan_shards
from pipeline.datasets.masks import FileMask
from pipeline.datasets.sample import Sample


def _sample(image: str, phrase: str, mask: str = "m.png") -> Sample:
    return Sample(
        image_id=image, label_id=phrase, image=image, phrase=phrase, mask=FileMask(key=mask), split="train"
    )


def _members(images: int, phrases: int, draws: int = 1) -> list[Member]:
    samples = [_sample(f"{i}.jpg", f"phrase {p}") for i in range(images) for p in range(phrases)]
    return list(list_members(samples, draws=draws, digest=lambda key: f"digest of {key}"))


def test_sample_id_is_its_content_not_its_place() -> None:
    contents = {"a.jpg": "1", "b.jpg": "1", "m.png": "2", "n.png": "2", "o.png": "3"}
    base = sample_id(_sample("a.jpg", "cat", "m.png"), contents.__getitem__)
    assert sample_id(_sample("b.jpg", "cat", "n.png"), contents.__getitem__) == base
    assert sample_id(_sample("a.jpg", "dog", "m.png"), contents.__getitem__) != base
    assert sample_id(_sample("a.jpg", "cat", "o.png"), contents.__getitem__) != base


def test_a_sample_listed_twice_is_one_member() -> None:
    twice = [_sample("a.jpg", "cat"), _sample("a.jpg", "cat")]
    assert len(list(list_members(twice, draws=3, digest=str))) == 3


def test_member_keys_differ_by_draw() -> None:
    assert len({member_key("a", draw) for draw in range(64)}) == 64


@given(images=st.integers(1, 12), phrases=st.integers(1, 5), size=st.integers(1, 20), seed=st.integers(0, 9))
def test_plan_covers_each_member_once_in_any_arrival(images: int, phrases: int, size: int, seed: int) -> None:
    members = _members(images, phrases, draws=2)
    plans = plan_shards(members, spec_key="k", samples_per_shard=size)
    shuffled = random.Random(seed).sample(members, len(members))  # noqa: S311 - a test's shuffle
    assert plan_shards(shuffled, spec_key="k", samples_per_shard=size) == plans
    assert sorted(m.key for plan in plans for m in plan.members) == sorted(m.key for m in members)
    shards_of_image = defaultdict(set)
    for plan in plans:
        keys = [member.key for member in plan.members]
        assert keys == sorted(keys)
        for member in plan.members:
            shards_of_image[member.image_digest].add(plan.shard_id)
    assert all(len(shards) == 1 for shards in shards_of_image.values())


def test_shard_id_depends_on_specification_and_members() -> None:
    members = _members(4, 2)
    (one,) = plan_shards(members, spec_key="k", samples_per_shard=99)
    (other_spec,) = plan_shards(members, spec_key="l", samples_per_shard=99)
    (fewer,) = plan_shards(members[:-1], spec_key="k", samples_per_shard=99)
    assert len({one.shard_id, other_spec.shard_id, fewer.shard_id}) == 3
