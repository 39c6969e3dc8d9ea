"""One shard's computation: pure, frugal, and patient with faulty data."""

import json
import math
import shutil
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ldznet.errors import UserError
from ldznet.frozen_ldm import FrozenLDM
from ldznet.images import to_tensor
from ldznet.ldm_folder import ldm_digest
from pipeline.cache.content_digest import ContentDigests
from pipeline.cache.entry import decode_columns, decode_entry, encode_entry
from pipeline.cache.member import Member
from pipeline.cache.member_table import MemberTable
from pipeline.cache.receipt import LeftOut
from pipeline.cache.spec import CacheSpec, FeaturesConfig, PolicyConfig
from pipeline.datasets.opening import DataConfig, open_dataset
from pipeline.draws import draw_generator
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore
from pipeline.precompute.commit import encode_sample
from pipeline.precompute.computation import AHEAD, ComputedSample, ShardComputation
from pipeline.precompute.networks import Networks
from pipeline.precompute.preparation import draw_prompt_and_timestep, prepare
from pipeline.precompute.scratch import Scratch
from pipeline.precompute.worker_pool import ShardWorker, WorkerSetup

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
    torch.set_num_threads(1)  # the networks' thread takes it over
    yield FrozenLDM.from_pretrained(miniature_ldm, last_block=10)
    torch.set_num_threads(threads)


@pytest.fixture
def data(small_data: Path) -> ObjectStore:
    return open_store(small_data)


@pytest.fixture
def faulty_data(small_data: Path, tmp_path: Path) -> Path:
    """A copy of the data set, to be damaged."""
    return Path(shutil.copytree(small_data, tmp_path / "faulty"))


def spec_of(policy: str, miniature_ldm: Path, *, content: str = "samples", **features: Any) -> CacheSpec:
    return CacheSpec(
        content=content,
        ldm_digest=ldm_digest(miniature_ldm),
        features=FeaturesConfig(**{"stored_dtype": "fp32", **features}),
        policy=PolicyConfig.model_validate(POLICIES[policy]),
    )


def members_of(folder: Path, spec: CacheSpec) -> list[Member]:
    dataset = open_dataset(DataConfig(format="folder", root=str(folder)))
    digests = ContentDigests(store=dataset.store)
    samples = dataset.samples("train")
    with MemberTable.from_samples(samples, draws=spec.policy.draws, digest=digests) as table:
        return list(table.members(range(len(table))))


Files = dict[str, dict[str, bytes]]
Compute = Callable[..., tuple[list[ComputedSample], list[LeftOut]]]


@pytest.fixture
def compute(tmp_path: Path, ldm: FrozenLDM) -> Compute:
    """Computes a shard: its samples, and who was left out."""
    numbers = count()

    def run(
        spec: CacheSpec,
        members: list[Member],
        data: ObjectStore,
        networks: Networks | None = None,
        **more: Any,
    ) -> tuple[list[ComputedSample], list[LeftOut]]:
        if networks is None:
            with Networks(ldm) as own:
                return run(spec, members, data, own, **more)
        with Scratch(tmp_path / f"scratch-{next(numbers)}") as scratch:
            computation = ShardComputation(spec, networks=networks, scratch=scratch, **more)
            left_out = computation.decode(members, data.get)
            return list(computation.samples()), left_out

    return run


@pytest.fixture
def encoded(compute: Compute) -> Callable[..., Files]:
    """The files of every sample of a shard from which nobody is left out."""

    def run(spec: CacheSpec, members: list[Member], data: ObjectStore, **more: Any) -> Files:
        samples, left_out = compute(spec, members, data, **more)
        assert left_out == []
        return {sample.entry.key: encode_sample(spec, sample) for sample in samples}

    return run


@pytest.mark.parametrize("policy", POLICIES)
def test_bytes_do_not_depend_on_neighbours(
    policy: str, encoded: Callable[..., Files], data: ObjectStore, small_data: Path, miniature_ldm: Path
) -> None:
    spec = spec_of(policy, miniature_ldm, keep_images=True)
    members = members_of(small_data, spec)[:22]
    together = encoded(spec, members, data)
    assert list(together) == sorted(one.key for one in members)
    assert together == encoded(spec, members[::-1], data, decoders=3)
    # Cut elsewhere, every sample has other neighbours, another place in its batch, and other padding.
    apart: Files = {}
    for part in (members[:3], members[3:4], members[4:13], members[13:]):
        apart |= encoded(spec, part, data)
    assert apart == together


@pytest.mark.parametrize("policy", POLICIES)
def test_values_are_those_of_samples_computed_one_by_one(
    *, policy: str, compute: Compute, ldm: FrozenLDM, data: ObjectStore, small_data: Path, miniature_ldm: Path
) -> None:
    spec = spec_of(policy, miniature_ldm, keep_images=True)
    features, members = spec.features, members_of(small_data, spec)[:11]
    samples, _ = compute(spec, members, data)
    prepared, _ = prepare(spec, members, data.get)
    assert len(prepared) == len(samples) == 11
    for one, sample in zip(prepared, samples, strict=True):
        # A batch of one sample over and over: the shape is what the specification says, and that rounds.
        def normal(name: str, *parts: str | int, rows: int) -> torch.Tensor:
            drawn = draw_generator(name, features.seed, *parts).standard_normal((4, 8, 8), dtype="float32")
            return torch.from_numpy(drawn).repeat(rows, 1, 1, 1)

        images = to_tensor(one.pixels).repeat(features.image_batch, 1, 1, 1)
        z = ldm.encode_images(images, noise=normal("posterior", *one.view_key, rows=features.image_batch))[:1]
        context = ldm.encode_prompts([one.prompt] * features.prompt_batch)[:1]
        rows, draw = features.feature_batch, (one.member.sample_id, one.member.draw)
        steps = torch.full((rows,), one.timestep)
        noisy = ldm.add_noise(z.repeat(rows, 1, 1, 1), normal("noise", *draw, rows=rows), steps)
        blocks = ldm.block_features(noisy, steps, context.repeat(rows, 1, 1), blocks=features.blocks)
        entry = sample.entry
        assert entry.key == one.member.key
        assert torch.equal(entry.latents, z[0])
        assert torch.equal(entry.context, context[0])
        assert all(torch.equal(entry.features[block], blocks[block][0]) for block in features.blocks)
        assert (entry.mask == one.mask).all()
        decoded = decode_entry(entry.key, encode_sample(spec, sample))
        assert decoded.image is not None
        assert (decoded.image == one.pixels).all()
        assert (decoded.facts["prompt"], decoded.facts["timestep"]) == (one.prompt, one.timestep)


def test_shards_computed_at_the_same_time_have_the_bytes_of_each_alone(
    encoded: Callable[..., Files], ldm: FrozenLDM, data: ObjectStore, small_data: Path, miniature_ldm: Path
) -> None:
    spec = spec_of("shared", miniature_ldm, keep_images=True)
    members = members_of(small_data, spec)
    parts = [members[:30], members[30:47], members[47:]]
    alone = [encoded(spec, part, data) for part in parts]
    start = threading.Barrier(len(parts))

    def run(part: list[Member]) -> Files:
        start.wait()
        return encoded(spec, part, data, networks=networks)

    with Networks(ldm) as networks, ThreadPoolExecutor(len(parts)) as threads:
        for _ in range(3):
            assert list(threads.map(run, parts)) == alone


class Alive:
    """How many of the noted objects live at once, at most."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def note(self, thing: Any) -> Any:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        weakref.finalize(thing, self._gone)
        return thing

    def _gone(self) -> None:
        with self._lock:
            self.now -= 1


@pytest.mark.parametrize("draws", [1, 6])
def test_what_is_held_does_not_grow_with_the_shard(
    *,
    draws: int,
    ldm: FrozenLDM,
    data: ObjectStore,
    small_data: Path,
    miniature_ldm: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipeline.precompute import preparation

    policy = PolicyConfig.model_validate({**POLICIES["published"], "draws": draws})
    spec = spec_of("published", miniature_ldm, image_batch=2, feature_batch=2, prompt_batch=2)
    spec = spec.model_copy(update={"policy": policy})
    members = members_of(small_data, spec)
    photos, pixels, masks, passes = Alive(), Alive(), Alive(), Alive()
    for module, name, alive in (
        (preparation, "decode_image", photos),
        (preparation, "apply_to_image", pixels),
        (preparation, "apply_to_mask", masks),
    ):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, real=real, alive=alive: alive.note(real(*given)))
    for name in ("encode_images", "encode_prompts"):
        call = getattr(ldm, name)
        monkeypatch.setattr(ldm, name, lambda *given, call=call, **named: passes.note(call(*given, **named)))
    begun, decoders = Counter[str](), 2
    features = ldm.block_features

    def counted(*given: Any, **named: Any) -> Any:
        begun["rows"] += 2
        return features(*given, **named)

    monkeypatch.setattr(ldm, "block_features", counted)
    taken = 0
    with Networks(ldm) as networks, Scratch(tmp_path / "scratch") as scratch:
        computation = ShardComputation(spec, networks=networks, scratch=scratch, decoders=decoders)
        assert computation.decode(members, data.get) == []
        for _ in computation.samples():
            assert begun["rows"] <= taken + 2 * 2
            taken += 1
    assert taken == len(members) == 36 * draws
    held = AHEAD + 2 * decoders + 1  # waiting; at each decoder, being made and being handed over; taken
    assert photos.most <= 2 * decoders
    assert masks.most <= held
    assert pixels.most <= held + 2 * spec.features.image_batch
    assert passes.most <= 4


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
    *,
    policy: str,
    compute: Compute,
    ldm: FrozenLDM,
    data: ObjectStore,
    small_data: Path,
    miniature_ldm: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = spec_of(policy, miniature_ldm, image_batch=1, prompt_batch=1)
    members = members_of(small_data, spec)
    counted = Counted(ldm, monkeypatch)
    entries = [sample.entry for sample in compute(spec, members, data)[0]]
    views = {(entry.facts["image_digest"], *entry.facts["view"].values()) for entry in entries}
    expected = len(members) if policy == "published" else len(views)
    assert counted.passes["encode_images"] == expected
    if policy == "squash":
        assert expected == 12
    prompts = {entry.facts["prompt"] for entry in entries}
    assert sorted(counted.prompts) == sorted(prompts)
    assert len(prompts) < len(members)
    assert counted.passes["block_features"] == math.ceil(len(members) / spec.features.feature_batch)


def test_phrases_of_one_view_share_its_latents(
    compute: Compute, data: ObjectStore, small_data: Path, miniature_ldm: Path
) -> None:
    spec = spec_of("shared", miniature_ldm)
    samples, _ = compute(spec, members_of(small_data, spec), data)
    first, *_ = entries = [sample.entry for sample in samples]
    same = [e for e in entries if all(e.facts[k] == first.facts[k] for k in ("image_digest", "view"))]
    assert len(same) >= 3
    assert all(torch.equal(entry.latents, first.latents) for entry in same)
    assert not all(torch.equal(entry.latents, first.latents) for entry in entries)


@pytest.mark.parametrize("stored", [{"stored_dtype": "fp32"}, {"stored_dtype": "int8", "scale_group": 3}])
def test_columns_hold_the_further_blocks_of_the_same_samples(
    stored: dict[str, Any], compute: Compute, data: ObjectStore, faulty_data: Path, miniature_ldm: Path
) -> None:
    whole_spec = spec_of("shared", miniature_ldm, blocks=(6, 8), keep_images=True, **stored)
    columns_spec = spec_of("shared", miniature_ldm, blocks=(6, 8), content="columns", **stored)
    members = members_of(faulty_data, whole_spec)
    damage(faulty_data)
    members = members_of(faulty_data, whole_spec)
    store = open_store(faulty_data)
    whole, left_out = compute(whole_spec, members, store)
    columns, also_left_out = compute(columns_spec, members, store)
    assert left_out == also_left_out != []
    assert [one.entry.key for one in columns] == [one.entry.key for one in whole]
    for one, sample in zip(columns, whole, strict=True):
        files = encode_sample(columns_spec, one)
        assert list(files) == ["safetensors"]
        features, scales = decode_columns(files, blocks=(6, 8))
        expected = decode_entry(sample.entry.key, encode_sample(whole_spec, sample))
        assert bool(scales) == (stored["stored_dtype"] == "int8")
        for got, wanted in ((features, expected.features), (scales, expected.scales)):
            assert got.keys() == wanted.keys()
            assert all(torch.equal(got[block], wanted[block]) for block in got)


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
    compute: Compute, encoded: Callable[..., Files], small_data: Path, faulty_data: Path, miniature_ldm: Path
) -> None:
    spec = spec_of("squash", miniature_ldm)
    clean = encoded(spec, members_of(small_data, spec), open_store(small_data))
    damage(faulty_data)
    members = members_of(faulty_data, spec)
    samples, left_out = compute(spec, members, open_store(faulty_data))
    assert {member.why for member in left_out} == {"failed"}
    assert {member.image for member in left_out} == set(REASONS)
    assert all(REASONS[member.image] in member.reason for member in left_out)
    assert [member.key for member in left_out] == sorted(member.key for member in left_out)
    # All phrases of the three bad images, three masks, one phrase; the others are what they were.
    assert len(left_out) == 3 * 3 + 3 + 1
    rest = {sample.entry.key: encode_sample(spec, sample) for sample in samples}
    assert rest.items() <= clean.items()
    assert len(rest) == len(members) - len(left_out)


def test_a_shard_of_which_nothing_is_left_is_empty(
    compute: Compute, small_data: Path, tmp_path: Path, miniature_ldm: Path
) -> None:
    folder = Path(shutil.copytree(small_data, tmp_path / "no-images"))
    shutil.rmtree(folder / "images")
    spec = spec_of("squash", miniature_ldm)
    samples, left_out = compute(spec, members_of(folder, spec), open_store(folder))
    assert samples == []
    assert len(left_out) == 36


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
    name: str, gone: bool, compute: Compute, faulty_data: Path, miniature_ldm: Path
) -> None:
    spec = spec_of("squash", miniature_ldm)
    members = members_of(faulty_data, spec)
    path = faulty_data / name
    if gone:
        path.unlink()
    else:
        shutil.copyfile(faulty_data / name.replace("1", "11", 1), path)
    before = set(threading.enumerate())
    with pytest.raises(UserError, match=r"1.* has changed since the data set was listed"):
        compute(spec, members, open_store(faulty_data))
    assert set(threading.enumerate()) <= before  # others' threads may end meanwhile


class OnceDamaged:
    """A store whose first answer for each object has a bit flipped, or says that it is not there."""

    def __init__(self, store: ObjectStore, *, missing: bool) -> None:
        self._store, self._missing = store, missing
        self.asked: Counter[str] = Counter()

    def get(self, key: str) -> bytes:
        self.asked[key] += 1
        body = self._store.get(key)
        if self.asked[key] > 1:
            return body
        if self._missing:
            raise KeyError(key)
        return body[:40] + bytes([body[40] ^ 1]) + body[41:]


@pytest.mark.parametrize("missing", [False, True])
def test_a_bit_flipped_on_the_way_is_read_again_and_blames_nobody(
    missing: bool, encoded: Callable[..., Files], data: ObjectStore, small_data: Path, miniature_ldm: Path
) -> None:
    spec = spec_of("squash", miniature_ldm)
    members = members_of(small_data, spec)
    faulty = OnceDamaged(data, missing=missing)
    assert encoded(spec, members, faulty) == encoded(spec, members, data)
    assert len(faulty.asked) == 12 + 36
    assert set(faulty.asked.values()) == {2}


def test_values_that_the_stored_type_cannot_hold_are_told(
    compute: Compute, data: ObjectStore, small_data: Path, miniature_ldm: Path
) -> None:
    spec = spec_of("squash", miniature_ldm)
    ((sample,), _) = compute(spec, members_of(small_data, spec)[:1], data)
    entry = sample.entry
    entry.features[8][0, 0, 0] = 1e6
    assert len(encode_entry(entry, stored_dtype="bf16")) == 3
    with pytest.raises(UserError, match=r"block_8 of sample .* too large for fp16.*stored_dtype"):
        encode_entry(entry, stored_dtype="fp16")
    entry.features[8][0, 0, 0] = float("nan")
    with pytest.raises(ArithmeticError, match=r"block_8 of sample .* is not finite"):
        encode_entry(entry, stored_dtype="fp32")
