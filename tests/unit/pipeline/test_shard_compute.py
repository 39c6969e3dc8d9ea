"""One shard's computation: pure, frugal, and patient with faulty data."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ldznet.errors import UserError
from ldznet.frozen_ldm import FrozenLDM
from ldznet.ldm_folder import ldm_digest
from pipeline.cache.content_digest import ContentDigests
from pipeline.cache.entry import Entry, encode_entry
from pipeline.cache.member import Member, list_members
from pipeline.cache.spec import CacheSpec, FeaturesConfig, PolicyConfig
from pipeline.datasets.opening import DataConfig, open_dataset
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore
from pipeline.shard_compute import compute_entries, draw_prompt_and_timestep, prepare
from pipeline.shard_workers import ShardWorker, WorkerSetup

POLICIES: dict[str, dict[str, Any]] = {
    "squash": {"view": {"policy": "squash", "size": 64}},
    "shared": {
        "view": {"policy": "shared", "size": 64},
        "timesteps": {"low": 300, "high": 500},
        "prompts": "published",
        "draws": 2,
    },
    "published": {"view": {"policy": "published", "size": 64}, "prompts": "published", "draws": 2},
}


@pytest.fixture(scope="module")
def ldm(miniature_ldm: Path) -> Iterator[FrozenLDM]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield FrozenLDM.from_pretrained(miniature_ldm, last_block=10)
    torch.set_num_threads(threads)


@pytest.fixture
def data(small_data: Path) -> ObjectStore:
    return open_store(small_data)


@pytest.fixture
def faulty_data(small_data: Path, tmp_path: Path) -> Path:
    """A copy of the data set, to be damaged."""
    return Path(shutil.copytree(small_data, tmp_path / "faulty"))


def spec_of(policy: str, miniature_ldm: Path, **features: Any) -> CacheSpec:
    return CacheSpec(
        ldm_digest=ldm_digest(miniature_ldm),
        features=FeaturesConfig(stored_dtype="fp32", **features),
        policy=PolicyConfig.model_validate(POLICIES[policy]),
    )


def members_of(folder: Path, spec: CacheSpec) -> list[Member]:
    dataset = open_dataset(DataConfig(format="folder", root=str(folder)))
    digests = ContentDigests(store=dataset.store)
    return list(list_members(dataset.samples("train"), draws=spec.policy.draws, digest=digests))


def computed(spec: CacheSpec, members: list[Member], ldm: FrozenLDM, data: ObjectStore) -> dict[str, Entry]:
    prepared, left_out = prepare(spec, members, data.get)
    assert left_out == []
    return {entry.key: entry for entry in compute_entries(spec, prepared, ldm)}


def encoded(entries: dict[str, Entry]) -> dict[str, dict[str, bytes]]:
    return {key: encode_entry(entry, stored_dtype="fp32") for key, entry in entries.items()}


@pytest.mark.parametrize("policy", POLICIES)
def test_bytes_do_not_depend_on_neighbours(
    policy: str, ldm: FrozenLDM, data: ObjectStore, small_data: Path, miniature_ldm: Path
) -> None:
    spec = spec_of(policy, miniature_ldm, keep_images=True)
    members = members_of(small_data, spec)[:22]
    together = encoded(computed(spec, members, ldm, data))
    again = encoded(computed(spec, members, ldm, data))
    assert together == again
    # Cut elsewhere, every sample has other neighbours, another place in its batch, and other padding.
    apart: dict[str, dict[str, bytes]] = {}
    for part in (members[:3], members[3:4], members[4:13], members[13:]):
        apart |= encoded(computed(spec, part, ldm, data))
    assert apart == together


def test_another_batch_shape_may_round_otherwise_so_it_is_in_the_key(miniature_ldm: Path) -> None:
    specs = [
        spec_of("squash", miniature_ldm, feature_batch=8),
        spec_of("squash", miniature_ldm, feature_batch=4),
        spec_of("squash", miniature_ldm, threads=2),
    ]
    assert len({spec.key for spec in specs}) == 3


def test_a_worker_computes_with_the_threads_of_the_specification(tmp_path: Path, miniature_ldm: Path) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            features = FeaturesConfig(threads=threads)
            ShardWorker(
                WorkerSetup(
                    ldm_source=str(miniature_ldm), ldm_digest="d", features=features, cache_url=str(tmp_path)
                )
            )
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_draws_come_from_seed_sample_and_draw_alone(small_data: Path, miniature_ldm: Path) -> None:
    spec = spec_of("shared", miniature_ldm)
    members = members_of(small_data, spec)

    def draws(order: list[Member], seed: int) -> dict[str, tuple[str, int]]:
        return {one.key: draw_prompt_and_timestep(spec.policy, seed=seed, member=one) for one in order}

    forward = draws(members, seed=0)
    assert forward == draws(members[::-1], seed=0)
    assert forward != draws(members, seed=1)
    assert all(300 <= timestep < 500 for _, timestep in forward.values())
    assert len({timestep for _, timestep in forward.values()}) > 40
    assert all(one.sample.phrase in forward[one.key][0] for one in members)
    assert len({prompt for prompt, _ in forward.values()}) > 20


class Counted:
    """The real LDM, with the rows of every pass noted."""

    def __init__(self, ldm: FrozenLDM, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes: Counter[str] = Counter()
        self.prompts: list[str] = []
        for name in ("encode_images", "encode_prompts", "block_features"):
            monkeypatch.setattr(ldm, name, self._counting(name, getattr(ldm, name)))

    def _counting(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(first: Any, *rest: Any, **named: Any) -> Any:
            self.passes[name] += 1
            if name == "encode_prompts":
                self.prompts += first
            return call(first, *rest, **named)

        return counted


@pytest.mark.parametrize("policy", POLICIES)
def test_latents_once_a_view_and_contexts_once_a_prompt(
    policy: str, ldm: FrozenLDM, small_data: Path, miniature_ldm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(policy, miniature_ldm, image_batch=1, prompt_batch=1)
    members = members_of(small_data, spec)
    counted = Counted(ldm, monkeypatch)
    entries = computed(spec, members, ldm, open_store(small_data))
    views = {(entry.facts["image_digest"], *entry.facts["view"].values()) for entry in entries.values()}
    expected = len(members) if policy == "published" else len(views)
    assert counted.passes["encode_images"] == expected
    if policy == "squash":
        assert expected == 12
    prompts = {entry.facts["prompt"] for entry in entries.values()}
    assert sorted(counted.prompts) == sorted(prompts)
    assert len(prompts) < len(members)
    assert counted.passes["block_features"] == math.ceil(len(members) / spec.features.feature_batch)


def test_phrases_of_one_view_share_its_latents(
    ldm: FrozenLDM, data: ObjectStore, small_data: Path, miniature_ldm: Path
) -> None:
    spec = spec_of("shared", miniature_ldm)
    entries = list(computed(spec, members_of(small_data, spec), ldm, data).values())
    first = entries[0]
    same = [e for e in entries if all(e.facts[k] == first.facts[k] for k in ("image_digest", "view"))]
    assert len(same) >= 3
    assert all(torch.equal(entry.latents, first.latents) for entry in same)
    assert not all(torch.equal(entry.latents, first.latents) for entry in entries)


REASONS = {
    "images/3.png": "damaged image file",
    "images/4.png": "images/4.png is missing",
    "images/5.png": "not an image file",
    "images/6.png": "masks/6-0.png is missing",
    "images/7.png": "the mask is empty",
    "images/8.png": "9 x 9",
    "images/9.png": "the phrase is empty",
}


def damage(folder: Path) -> None:
    """Put every fault into the data set, and a line with an empty phrase."""
    (folder / "images/3.png").write_bytes((folder / "images/3.png").read_bytes()[:400])
    (folder / "images/4.png").unlink()
    (folder / "images/5.png").write_bytes(b"<html>404</html>")
    (folder / "masks/6-0.png").unlink()
    Image.new("L", (96, 72)).save(folder / "masks/7-1.png")
    Image.new("L", (9, 9), 255).save(folder / "masks/8-2.png")
    with (folder / "phrases.jsonl").open("a") as file:
        line = {"image": "images/9.png", "mask": "masks/9-0.png", "phrase": "  ", "split": "train"}
        file.write(json.dumps(line) + "\n")


def test_faulty_samples_are_left_out_with_their_reason(
    ldm: FrozenLDM, small_data: Path, faulty_data: Path, miniature_ldm: Path
) -> None:
    spec = spec_of("squash", miniature_ldm)
    clean = encoded(computed(spec, members_of(small_data, spec), ldm, open_store(small_data)))
    damage(faulty_data)
    members = members_of(faulty_data, spec)
    prepared, left_out = prepare(spec, members, open_store(faulty_data).get)
    assert {member.why for member in left_out} == {"failed"}
    assert {member.image for member in left_out} == set(REASONS)
    assert all(REASONS[member.image] in member.reason for member in left_out)
    # All phrases of the three bad images, three masks, one phrase; the others are what they were.
    assert len(left_out) == 3 * 3 + 3 + 1
    rest = encoded({entry.key: entry for entry in compute_entries(spec, prepared, ldm)})
    assert rest.items() <= clean.items()
    assert len(rest) == len(members) - len(left_out)


def test_a_phrase_outside_the_view_is_filtered_not_failed(
    small_data: Path, miniature_ldm: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(small_data, tmp_path / "corner"))
    for name in ("masks/1-0.png", "masks/3-0.png", "masks/5-0.png"):
        mask = Image.new("L", (96, 72))
        mask.paste(255, (0, 0, 2, 2))  # most square crops of the photo pass it by
        mask.save(folder / name)
    spec = spec_of("shared", miniature_ldm)
    prepared, left_out = prepare(spec, members_of(folder, spec), open_store(folder).get)
    assert {member.why for member in left_out} == {"filtered"}
    assert {member.reason for member in left_out} == {"nothing of the phrase lies in the view"}
    assert len(prepared) + len(left_out) == 72


@pytest.mark.parametrize("name", ["images/1.png", "masks/1-2.png"])
@pytest.mark.parametrize("gone", [False, True])
def test_data_that_changed_since_it_was_listed_is_refused(
    name: str, gone: bool, faulty_data: Path, miniature_ldm: Path
) -> None:
    spec = spec_of("squash", miniature_ldm)
    members = members_of(faulty_data, spec)
    path = faulty_data / name
    if gone:
        path.unlink()
    else:
        shutil.copyfile(faulty_data / name.replace("1", "11", 1), path)
    with pytest.raises(UserError, match=r"1.* has changed since the data set was listed"):
        prepare(spec, members, open_store(faulty_data).get)


def test_values_that_the_stored_type_cannot_hold_are_told(
    ldm: FrozenLDM, data: ObjectStore, small_data: Path, miniature_ldm: Path
) -> None:
    spec = spec_of("squash", miniature_ldm)
    (entry,) = computed(spec, members_of(small_data, spec)[:1], ldm, data).values()
    entry.features[8][0, 0, 0] = 1e6
    assert len(encode_entry(entry, stored_dtype="bf16")) == 3
    with pytest.raises(UserError, match=r"block_8 of sample .* too large for fp16.*stored_dtype"):
        encode_entry(entry, stored_dtype="fp16")
    entry.features[8][0, 0, 0] = float("nan")
    with pytest.raises(ArithmeticError, match=r"block_8 of sample .* is not finite"):
        encode_entry(entry, stored_dtype="fp32")
