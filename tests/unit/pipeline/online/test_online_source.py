"""Online batches: the cache's own order, draws and numbers; work shared; what has no data weighs nothing."""

import json
import logging
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldznet.errors import UserError
from ldznet.ldm_folder import ldm_digest, resolve_ldm
from pipeline.loading.batch import Batch
from pipeline.loading.loader import CacheLoader
from pipeline.loading.sample_order import Position
from pipeline.object_store.opening import open_store
from pipeline.online import frozen_stream
from pipeline.online.features import OnlineFeatures
from pipeline.online.source import OnlineSource
from pipeline.recipe import Recipe
from pipeline.recipe_file import load_recipe
from pipeline.training.cached_sets import CachedSets
from pipeline.training.rank_training import make_source, make_validation_source

pytestmark = pytest.mark.usefixtures("one_thread")

ONLINE, CYCLE = "train.features=online", "train.online_draws=cycle"


@pytest.fixture(scope="module")
def cached(
    tmp_path_factory: pytest.TempPathFactory,
    small_recipe_in: Callable[..., Path],
    precompute_here: Callable[..., None],
) -> Path:
    """A recipe whose sets are cached, two draws of each training sample."""
    path = small_recipe_in(tmp_path_factory.mktemp("cached"))
    precompute_here(path, "sets.train.draws=2")
    return path


def recipe_of(path: Path, *overrides: str) -> Recipe:
    return load_recipe(path, ["sets.train.draws=2", "train.workers=1", *overrides])


def batches_of(recipe: Recipe, *positions: Position) -> list[list[Batch]]:
    """The batches that a training on this recipe takes."""
    store = open_store(recipe.cache.url)
    with OnlineFeatures(recipe, store=store, cached=CachedSets.find(recipe, store)) as online:
        source = make_source(
            recipe, store=store, cached=CachedSets.find(recipe, store), online=online
        ).batches
        return [list(source.epoch(position)) for position in positions]


def assert_equal(ours: Batch, theirs: Batch) -> None:
    assert ours.keys == theirs.keys
    assert ours.weight.tolist() == theirs.weight.tolist()
    assert ours.facts == theirs.facts
    assert torch.equal(ours.masks, theirs.masks)
    assert torch.equal(ours.latents, theirs.latents)
    assert torch.equal(ours.context, theirs.context)
    assert ours.features.keys() == theirs.features.keys()
    assert all(torch.equal(ours.features[block], theirs.features[block]) for block in ours.features)
    assert (ours.images is None) == (theirs.images is None)


def test_online_batches_are_the_caches_to_the_bit(cached: Path) -> None:
    epochs = [Position(epoch=epoch) for epoch in range(3)]
    theirs = batches_of(recipe_of(cached), *epochs)
    ours = batches_of(recipe_of(cached, ONLINE, CYCLE), *epochs)
    assert [len(epoch) for epoch in ours] == [len(epoch) for epoch in theirs] == [4, 4, 4]
    for mine, other in zip(ours, theirs, strict=True):
        for one, two in zip(mine, other, strict=True):
            assert_equal(one, two)
    assert {fact["draw"] for batch in ours[1] for fact in batch.facts} == {1}
    assert {fact["draw"] for batch in ours[2] for fact in batch.facts} == {0}


def test_crops_about_a_phrase_are_the_caches_too(
    tmp_path: Path, small_recipe_in: Callable[..., Path], precompute_here: Callable[..., None]
) -> None:
    options = ["sets.train.view.policy=published", "sets.train.draws=2"]
    path = small_recipe_in(tmp_path)
    precompute_here(path, *options)
    epochs = [Position(epoch=epoch) for epoch in range(2)]
    theirs = batches_of(load_recipe(path, ["train.workers=1", *options]), *epochs)
    ours = batches_of(load_recipe(path, ["train.workers=1", ONLINE, CYCLE, *options]), *epochs)
    views = []
    for mine, other in zip(ours, theirs, strict=True):
        for one, two in zip(mine, other, strict=True):
            assert_equal(one, two)
            views += [(fact["image_digest"], str(fact["view"])) for fact in one.facts]
    assert len(set(views)) > len({image for image, _ in views}), "each phrase has a view of its own"


@pytest.mark.parametrize("size", [3, 8, 36])
def test_whatever_the_batch_the_numbers_are_the_caches(cached: Path, size: int) -> None:
    options = [f"train.batch_size={size}"]
    (theirs,) = batches_of(recipe_of(cached, *options), Position())
    (ours,) = batches_of(recipe_of(cached, ONLINE, CYCLE, *options), Position())
    for one, two in zip(ours, theirs, strict=True):
        assert_equal(one, two)


def test_resuming_gives_the_rest_exactly(cached: Path) -> None:
    whole, rest = batches_of(recipe_of(cached, ONLINE, CYCLE), Position(epoch=1), Position(epoch=1, batch=3))
    assert len(rest) == 1
    assert_equal(rest[0], whole[3])


def test_without_a_cache_the_order_is_that_of_the_cache_to_be(cached: Path, tmp_path: Path) -> None:
    there = recipe_of(cached, ONLINE, CYCLE)
    nowhere = recipe_of(cached, ONLINE, CYCLE, f"cache.url={tmp_path}/empty")
    (ours,), (theirs,) = batches_of(nowhere, Position(epoch=1)), batches_of(there, Position(epoch=1))
    for one, two in zip(ours, theirs, strict=True):
        assert_equal(one, two)
    assert not list(tmp_path.rglob("*.tar"))


def test_fresh_draws_begin_with_the_caches_and_never_end(cached: Path) -> None:
    first, second, third = batches_of(
        recipe_of(cached, ONLINE), *[Position(epoch=epoch) for epoch in (0, 1, 2)]
    )
    (theirs,) = batches_of(recipe_of(cached), Position())
    for one, two in zip(first, theirs, strict=True):
        assert_equal(one, two)
    for number, epoch in enumerate((first, second, third)):
        assert {fact["draw"] for batch in epoch for fact in batch.facts} == {number}
    seen: dict[str, list[tuple[Any, ...]]] = {}
    for epoch in (first, second, third):
        for batch in epoch:
            for fact in batch.facts:
                drawn = (fact["prompt"], fact["timestep"], fact["view"]["left"], fact["view"]["top"])
                seen.setdefault(fact["sample_id"], []).append(drawn)
    assert all(len(set(drawn)) > 1 for drawn in seen.values() if len(drawn) == 3)


def ranks_share(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, *, rank: int, ranks: int, position: Position
) -> list[Batch]:
    from pipeline.training import ranks as group

    with monkeypatch.context() as patch:
        patch.setattr(group, "rank", lambda: rank)
        patch.setattr(group, "world_size", lambda: ranks)
        patch.setattr(group, "wait_for_all", lambda: None)
        patch.setattr(group, "agree", lambda value: value)
        patch.setattr(group, "add_over_ranks", lambda value: value)
        (batches,) = batches_of(recipe, position)
    return batches


def test_ranks_together_see_what_one_sees(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, position = recipe_of(cached, ONLINE), Position(epoch=3)
    (whole,) = batches_of(recipe, position)
    shares = [ranks_share(recipe, monkeypatch, rank=rank, ranks=2, position=position) for rank in range(2)]
    for number, batch in enumerate(whole):
        assert shares[0][number].keys + shares[1][number].keys == batch.keys
        assert torch.equal(torch.cat([share[number].latents for share in shares]), batch.latents)
        for block, tensor in batch.features.items():
            assert torch.equal(torch.cat([share[number].features[block] for share in shares]), tensor)


def test_validation_runs_on_the_cache_where_there_is_one_and_online_elsewhere(
    cached: Path, tmp_path: Path
) -> None:
    def validation(*overrides: str) -> tuple[type, list[Batch]]:
        recipe = recipe_of(cached, ONLINE, *overrides)
        store = open_store(recipe.cache.url)
        with OnlineFeatures(recipe, store=store, cached=CachedSets.find(recipe, store)) as online:
            source = make_validation_source(
                recipe,
                "val",
                store=store,
                cached=CachedSets.find(recipe, store),
                online=online,
                ldm_digest=ldm_digest(resolve_ldm(recipe.ldm.source)),
            )
            return type(source), list(source.epoch(Position()))

    (kind, theirs), (other, ours) = validation(), validation(f"cache.url={tmp_path}/empty")
    assert (kind, other) == (CacheLoader, OnlineSource)
    for one, two in zip(ours, theirs, strict=True):
        rows = np.flatnonzero(two.weight.numpy())
        assert one.weight.tolist() == two.weight.tolist()
        assert [one.keys[row] for row in rows] == [two.keys[row] for row in rows]
        assert torch.equal(one.latents[rows], two.latents[rows])
        assert torch.equal(one.features[8][rows], two.features[8][rows])
        assert torch.equal(one.masks[rows], two.masks[rows])
    assert sum(float(batch.weight.sum()) for batch in ours) == 9


def test_validation_on_another_ldms_features_is_refused(cached: Path) -> None:
    recipe = recipe_of(cached, ONLINE)
    store = open_store(recipe.cache.url)
    found = CachedSets.find(recipe, store)
    another = "0" * 64
    with (
        OnlineFeatures(recipe, store=store, cached=found) as online,
        pytest.raises(UserError, match="'val' are of another LDM than those that train"),
    ):
        make_validation_source(recipe, "val", store=store, cached=found, online=online, ldm_digest=another)


def test_a_checkpoint_position_means_something_in_its_own_order_only(cached: Path, tmp_path: Path) -> None:
    def digest(*overrides: str) -> str:
        recipe = recipe_of(cached, *overrides)
        store = open_store(recipe.cache.url)
        with OnlineFeatures(recipe, store=store, cached=CachedSets.find(recipe, store)) as online:
            return make_source(
                recipe, store=store, cached=CachedSets.find(recipe, store), online=online
            ).order_digest

    assert digest() == digest(ONLINE, CYCLE) == digest(ONLINE, CYCLE, f"cache.url={tmp_path}/empty")
    fewer = digest(ONLINE, CYCLE, "data.limit=20", f"cache.url={tmp_path}/empty")
    assert fewer != digest()


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many rows, padding not counted, went through each network."""
    counted: Counter[str] = Counter()
    for name in ("encode_views", "encode_prompts", "block_features"):
        monkeypatch.setattr(frozen_stream, name, _counting(getattr(frozen_stream, name), name, counted))
    return counted


def _counting(step: Callable[..., Any], name: str, counted: Counter[str]) -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        result = step(*arguments, **options)
        counted[name] += len(next(iter(result.values())) if isinstance(result, dict) else result)
        return result

    return run


def test_latents_once_a_view_and_contexts_once_a_prompt_of_a_batch(
    cached: Path, passes: Counter[str]
) -> None:
    ((batch,),) = batches_of(recipe_of(cached, ONLINE, "train.batch_size=36"), Position())
    views = {(fact["image_digest"], str(fact["view"])) for fact in batch.facts}
    prompts = {fact["prompt"] for fact in batch.facts}
    assert len(views) < 36
    assert len(prompts) < 36
    assert passes == {"encode_views": len(views), "encode_prompts": len(prompts), "block_features": 36}


def test_few_prompts_do_not_make_a_pass_wait_for_long(cached: Path, passes: Counter[str]) -> None:
    """One template and three phrases never fill a pass of 16 prompts."""
    overrides = ["sets.train.prompts=['a photo of a {}.']", "train.batch_size=1", "features.prompt_batch=4"]
    recipe = recipe_of(cached, ONLINE, *overrides)
    store = open_store(recipe.cache.url)
    with OnlineFeatures(recipe, store=store, cached=CachedSets.find(recipe, store)) as online:
        batches = make_source(
            recipe, store=store, cached=CachedSets.find(recipe, store), online=online
        ).batches.epoch(Position())
        next(batches)
        assert passes["block_features"] <= 2 * recipe.features.feature_batch
        assert len(list(batches)) == 35


@pytest.mark.parametrize(
    ("kind", "networks"),
    [
        ("znet", {"encode_views", "encode_prompts"}),
        ("rgbnet", {"encode_prompts"}),
    ],
)
def test_only_what_the_network_takes_is_loaded_and_computed(
    cached: Path, passes: Counter[str], kind: str, networks: set[str]
) -> None:
    overrides = [f"network.kind={kind}", "features.keep_images=true"]
    (batches,) = batches_of(recipe_of(cached, ONLINE, *overrides), Position())
    assert set(passes) == networks
    assert all(batch.features == {} for batch in batches)
    assert all(batch.latents.shape == (8, 4, 8, 8) for batch in batches)
    assert all(batch.images is not None and batch.images.shape == (8, 3, 64, 64) for batch in batches)


def test_features_of_fused_blocks_only(cached: Path) -> None:
    (batches,) = batches_of(recipe_of(cached, ONLINE, "network.blocks=[7,9]"), Position())
    assert set(batches[0].features) == {7, 9}


@pytest.fixture
def faulty(small_data: Path, tmp_path: Path) -> Path:
    """The small data with one photo gone, one cut short and one mask empty: 7 of 36 samples are faulty."""
    folder = tmp_path / "faulty"
    shutil.copytree(small_data, folder)
    (folder / "images/3.png").unlink()
    whole = (folder / "images/5.png").read_bytes()
    (folder / "images/5.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.zeros((72, 96), np.uint8)).save(folder / "masks/7-0.png")
    return folder


def test_samples_without_data_weigh_nothing_and_are_told(
    cached: Path, faulty: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    place = [f"data.root={faulty}", f"cache.url={tmp_path}/empty", "cache.max_failed_share=0.2"]
    first, second = batches_of(
        recipe_of(cached, ONLINE, *place, "train.batch_size=12"), Position(), Position(epoch=1)
    )
    for batches in (first, second):
        weights = torch.cat([batch.weight for batch in batches])
        assert len(weights) == 36
        assert int(weights.sum()) == 36 - 7
        for batch in batches:
            nothing = batch.weight == 0
            assert not batch.latents[nothing].any()
            assert not batch.features[8][nothing].any()
            assert not batch.masks[nothing].any()
            assert all(batch.masks[~nothing].flatten(1).any(1))
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 7  # in each epoch they fail again, and are told once
    assert sum("images/3.png" in line and "missing" in line for line in warned) == 3
    assert any("of 36 samples 7 were faulty" in record.getMessage() for record in caplog.records)


def test_a_view_that_misses_its_phrase_weighs_nothing_in_its_epoch(
    cached: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of random squares of a wide photo, some hold what lies at its end and some do not."""
    caplog.set_level(logging.INFO)
    lines = []
    for name in ("images", "masks"):
        (tmp_path / "wide" / name).mkdir(parents=True)
    for number in range(8):
        mask = np.zeros((64, 160), np.uint8)
        mask[:, :20] = 255
        Image.fromarray(mask).save(tmp_path / f"wide/masks/{number}.png")
        Image.fromarray(np.full((64, 160, 3), number, np.uint8)).save(tmp_path / f"wide/images/{number}.png")
        named = {"image": f"images/{number}.png", "mask": f"masks/{number}.png"}
        lines.append(json.dumps({**named, "phrase": "the end", "split": "train"}) + "\n")
    (tmp_path / "wide/phrases.jsonl").write_text("".join(lines))
    place = [f"data.root={tmp_path}/wide", f"cache.url={tmp_path}/empty"]
    epochs = batches_of(recipe_of(cached, ONLINE, *place), *[Position(epoch=epoch) for epoch in range(4)])
    seen: dict[str, set[float]] = {}
    for (batch,) in epochs:
        for key, weight, mask in zip(batch.keys, batch.weight.tolist(), batch.masks, strict=True):
            assert bool(mask.any()) == bool(weight)
            seen.setdefault(key, set()).add(weight)
    assert len(seen) == 4 * 8
    weights = torch.stack([batch.weight for (batch,) in epochs])
    assert 4 <= int(weights.sum()) <= 28
    told = [record.args for record in caplog.records if "not in their view" in record.getMessage()]
    assert [args[4] for args in told] == [int((row == 0).sum()) for row in weights]  # type: ignore[index]


def test_too_many_faulty_samples_end_the_run(cached: Path, faulty: Path, tmp_path: Path) -> None:
    place = [f"data.root={faulty}", f"cache.url={tmp_path}/empty", "cache.max_failed_share=0.1"]
    with pytest.raises(
        UserError, match=r"of 36 samples of the set 'train' are faulty, more than .*0.1 allows"
    ):
        batches_of(recipe_of(cached, ONLINE, *place), Position())


def test_a_cache_leaves_out_what_is_faulty_and_online_takes_its_order(
    cached: Path, faulty: Path, tmp_path: Path, precompute_here: Callable[..., None]
) -> None:
    place = [f"data.root={faulty}", f"cache.url={tmp_path}/cache", "cache.max_failed_share=0.2"]
    precompute_here(cached, "sets.train.draws=2", *place)
    (theirs,) = batches_of(recipe_of(cached, *place), Position(epoch=1))
    (ours,) = batches_of(recipe_of(cached, ONLINE, CYCLE, *place), Position(epoch=1))
    for one, two in zip(ours, theirs, strict=True):
        assert_equal(one, two)


def test_a_photo_that_changes_while_training_is_told(cached: Path, small_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(small_data, folder)
    recipe = recipe_of(cached, ONLINE, f"data.root={folder}", f"cache.url={tmp_path}/empty")
    store = open_store(recipe.cache.url)
    with OnlineFeatures(recipe, store=store, cached=CachedSets.find(recipe, store)) as online:
        source = make_source(
            recipe, store=store, cached=CachedSets.find(recipe, store), online=online
        ).batches
        for path in (folder / "images").iterdir():
            path.write_bytes((small_data / "images/14.png").read_bytes())
        with pytest.raises(UserError, match="has changed since the data set was listed"):
            list(source.epoch(Position()))


def test_samples_that_are_only_in_the_cache_are_told(
    cached: Path, small_data: Path, tmp_path: Path, precompute_here: Callable[..., None]
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(small_data, folder)
    place = [f"data.root={folder}", f"cache.url={tmp_path}/cache"]
    precompute_here(cached, "sets.train.draws=2", *place)
    lines = (folder / "phrases.jsonl").read_text().splitlines(keepends=True)
    (folder / "phrases.jsonl").write_text("".join(lines[3:]))
    with pytest.raises(UserError, match="3 of the 36 cached samples of the set 'train' are not in the data"):
        batches_of(recipe_of(cached, ONLINE, *place), Position())


def test_an_epoch_that_is_left_early_leaves_no_threads(cached: Path) -> None:
    recipe = recipe_of(cached, ONLINE)
    store = open_store(recipe.cache.url)
    with OnlineFeatures(recipe, store=store, cached=CachedSets.find(recipe, store)) as online:
        batches = make_source(
            recipe, store=store, cached=CachedSets.find(recipe, store), online=online
        ).batches.epoch(Position())
        next(batches)
        batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("photos")]


def test_flips_turn_photo_and_mask_together_and_a_view_for_all_its_phrases(
    cached: Path, passes: Counter[str]
) -> None:
    overrides = ["features.keep_images=true", "train.batch_size=36"]
    ((plain,),) = batches_of(recipe_of(cached, ONLINE, *overrides), Position())
    passes.clear()
    ((mixed,),) = batches_of(recipe_of(cached, ONLINE, *overrides, "train.augment=[flip]"), Position())
    assert plain.images is not None
    assert mixed.images is not None
    assert mixed.keys == plain.keys
    turned: dict[str, set[bool]] = {}
    for row, fact in enumerate(plain.facts):
        if torch.equal(mixed.images[row], plain.images[row]):
            assert torch.equal(mixed.masks[row], plain.masks[row])
            assert torch.equal(mixed.latents[row], plain.latents[row])
        else:
            assert torch.equal(mixed.images[row], plain.images[row].flip(-1))
            assert torch.equal(mixed.masks[row], plain.masks[row].flip(-1))
            assert not torch.equal(mixed.latents[row], plain.latents[row])
        if "left" in fact["phrase"]:
            assert torch.equal(mixed.images[row], plain.images[row])
        else:
            changed = not torch.equal(mixed.images[row], plain.images[row])
            turned.setdefault(fact["image_digest"], set()).add(changed)
    assert all(len(states) == 1 for states in turned.values())
    photos = [True in states for states in turned.values()]
    assert 2 <= sum(photos) <= 10  # of 12, about half
    # A photo that is turned is encoded twice, once as it is for the phrase that speaks of a side.
    assert passes["encode_views"] == 12 + sum(photos)
