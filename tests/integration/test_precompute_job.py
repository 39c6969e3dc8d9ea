"""`ldznet precompute` on a real Ray and a real S3 server: the same bytes whoever computes them, and only once."""

import contextlib
import hashlib
import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import psutil
import pytest
import torch

from jobs.cache import main as cache_main
from jobs.local_ray import ray_session
from jobs.precompute import main
from pipeline.cache import layout
from pipeline.cache.entry import Entry
from pipeline.cache.manifest import find_manifest
from pipeline.cache.receipt import Receipt
from pipeline.cache.sealed import seal, unseal
from pipeline.loading.loader import CacheLoader, SampleReader
from pipeline.loading.sample_order import Position
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore
from pipeline.recipe_file import load_recipe


@pytest.fixture(scope="module")
def ray_here(seaweedfs: Any) -> Iterator[None]:
    """One Ray for the module, whose processes find the S3 server."""
    with ray_session(cpus=3):
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, small_recipe_in: Callable[..., Path]) -> Path:
    return small_recipe_in(tmp_path_factory.mktemp("precompute"))


@pytest.fixture(scope="module")
def computed(ray_here: None, recipe: Path, seaweedfs: Any) -> str:
    """The URL of a cache on S3, computed by one worker."""
    url = f"s3://{seaweedfs.bucket}/{uuid4().hex}"
    assert main([str(recipe), f"cache.url={url}"]) == 0
    return url


def receipts(store: ObjectStore) -> dict[str, Receipt]:
    found = (unseal(Receipt, store.get(info.key)) for info in store.list() if "/receipts/" in info.key)
    return {receipt.shard_id: receipt for receipt in found}


def shards(store: ObjectStore) -> dict[str, bytes]:
    return {info.key: store.get(info.key) for info in store.list() if "/shards/" in info.key}


def versions(store: ObjectStore) -> dict[str, str]:
    return {info.key: info.etag for info in store.list()}


def test_a_cache_holds_each_sample_of_each_set(computed: str, recipe: Path) -> None:
    store = open_store(computed)
    loaded = load_recipe(recipe, [f"cache.url={computed}"])
    for name, members in {"train": 12 * 3 * 4, "val": 3 * 3}.items():
        manifest = find_manifest(store, loaded.request_digest(name))
        assert manifest is not None
        assert (manifest.samples + manifest.filtered, manifest.failed) == (members, 0)
        loader = CacheLoader(
            reader=SampleReader(store=store, manifest=manifest), batch_size=8, remainder="pad"
        )
        draws = range(loaded.sets[name].draws)
        rows = np.concatenate([loader.order(epoch) for epoch in draws])
        assert np.array_equal(np.sort(rows), np.arange(manifest.samples))
        for draw in draws:
            batches = list(loader.epoch(Position(epoch=draw)))
            assert {facts["draw"] for batch in batches for facts in batch.facts} == {draw}
        assert batches[0].latents.shape == (8, 4, 8, 8)
        assert list(batches[0].features) == [6, 7, 8, 9, 10]
        assert {facts["split"] for batch in batches for facts in batch.facts} == {name}
    assert len(receipts(store)) == len(shards(store)) == 4 * 2 + 1  # a draw's shards are its own


def test_a_second_run_computes_nothing_and_says_so(
    computed: str, recipe: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_ray(**_: object) -> None:
        raise AssertionError("a second run must not start Ray")

    monkeypatch.setattr("jobs.precompute_shards.ray_session", no_ray)
    caplog.set_level(logging.INFO)
    store = open_store(computed)
    before = versions(store)
    assert main([str(recipe), f"cache.url={computed}"]) == 0
    assert versions(store) == before
    lines = [record.getMessage() for record in caplog.records if record.name == "jobs.precompute"]
    assert len(lines) == 2
    for line, name in zip(lines, ("train", "val"), strict=True):
        pattern = rf"{name}: reusing cache {re.escape(store.url)}/[0-9a-f]{{12}}… with \d+ samples, nothing to compute"
        assert re.fullmatch(pattern, line)


def test_a_recipe_that_asks_for_the_same_reuses_it(
    computed: str, recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, miniature_ldm: Path
) -> None:
    monkeypatch.setattr("jobs.precompute_shards.ray_session", None)
    store = open_store(computed)
    before = receipts(store)
    same = tmp_path / "another place"
    same.symlink_to(miniature_ldm)
    assert main([str(recipe), f"cache.url={computed}", f"ldm.source={same}", "train.steps=7", "name=b"]) == 0
    assert receipts(store) == before


def test_two_workers_write_the_bytes_that_one_writes(computed: str, recipe: Path, s3_url: str) -> None:
    assert main([str(recipe), f"cache.url={s3_url}", "cache.workers=2"]) == 0
    one, two = open_store(computed), open_store(s3_url)
    assert receipts(two) == receipts(one)
    assert shards(two) == shards(one)


def test_a_folder_keeps_the_same_promises(computed: str, recipe: Path, tmp_path: Path) -> None:
    url = (tmp_path / "cache with spaces").as_uri()
    assert main([str(recipe), f"cache.url={url}", "sets.train.draws=4"]) == 0
    assert shards(open_store(url)) == shards(open_store(computed))


@pytest.fixture
def copy(computed: str, tmp_path: Path) -> ObjectStore:
    """The computed cache in a folder, to be changed."""
    store, source = open_store(tmp_path / "copy"), open_store(computed)
    for info in source.list():
        store.put(info.key, source.get(info.key))
    return store


def test_fewer_samples_use_the_shards_that_are_there(copy: ObjectStore, recipe: Path) -> None:
    old = {key: value for key, value in versions(copy).items() if "/shards/" in key}
    # 11 of the 12 photos: another manifest, of shards that were computed before but for one a draw, which had the 12th.
    assert main([str(recipe), f"cache.url={copy.url}", "data.limit=33"]) == 0
    now = {key: value for key, value in versions(copy).items() if "/shards/" in key}
    assert old.items() <= now.items()
    assert len(now) - len(old) == 4


def entries(store: ObjectStore, recipe: Path, name: str, *overrides: str) -> dict[str, Entry]:
    """What a reader gets of a set, by sample."""
    manifest = find_manifest(store, load_recipe(recipe, overrides).request_digest(name))
    assert manifest is not None
    reader = SampleReader(store=store, manifest=manifest)
    found = [reader.read_run(np.array([row]))[0] for row in range(len(reader.index))]
    return {entry.key: entry for entry in found}


def assert_same(ours: dict[str, Entry], theirs: dict[str, Entry]) -> None:
    assert set(ours) == set(theirs)
    for key, entry in theirs.items():
        same = ours[key]
        assert torch.equal(same.latents, entry.latents)
        assert torch.equal(same.context, entry.context)
        assert (list(same.features), list(same.scales)) == (list(entry.features), list(entry.scales))
        for block, tensor in entry.features.items():
            assert torch.equal(same.features[block].float(), tensor.float())
        assert all(torch.equal(same.scales[block], scale) for block, scale in entry.scales.items())
        assert (same.mask == entry.mask).all()
        assert same.facts == entry.facts


def test_more_blocks_compute_those_blocks_alone(copy: ObjectStore, recipe: Path, tmp_path: Path) -> None:
    old = shards(copy)
    more = "features.blocks=[5,6,7,8,9,10,11]"
    assert main([str(recipe), f"cache.url={copy.url}", more]) == 0
    columns = {key: body for key, body in shards(copy).items() if key not in old}
    assert len(columns) == len(old)
    assert sum(map(len, columns.values())) < sum(map(len, old.values()))
    direct = open_store(tmp_path / "direct")
    assert main([str(recipe), f"cache.url={direct.url}", more]) == 0
    for name in ("train", "val"):
        assert_same(entries(copy, recipe, name, more), entries(direct, recipe, name, more))


def test_another_stored_type_is_converted_to_what_a_computation_gives(
    copy: ObjectStore, recipe: Path, tmp_path: Path
) -> None:
    int8 = "features.stored_dtype=int8"
    assert main([str(recipe), f"cache.url={copy.url}", int8]) == 0
    direct = open_store(tmp_path / "direct")
    assert main([str(recipe), f"cache.url={direct.url}", int8]) == 0
    for name in ("train", "val"):
        assert_same(entries(copy, recipe, name, int8), entries(direct, recipe, name, int8))


def test_repair_computes_again_what_is_damaged_and_nothing_else(
    copy: ObjectStore, recipe: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = shards(copy)
    lost, damaged, *_ = sorted(before)
    copy.delete(lost)
    copy.put(damaged, before[damaged][:-2000] + b"x" + before[damaged][-1999:])
    caplog.set_level(logging.INFO)
    assert cache_main(["verify", copy.url]) == 1
    assert main([str(recipe), f"cache.url={copy.url}", "--repair"]) == 0
    assert "in 2 shards with" in caplog.text
    assert shards(copy) == before
    assert cache_main(["verify", copy.url]) == 0


def test_nothing_listens_beyond_this_machine(recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.precompute", str(recipe), f"cache.url={tmp_path / 'cache'}"]
    driver = psutil.Popen(command, stderr=subprocess.DEVNULL)
    listening: set[str] = set()
    while driver.poll() is None:
        for process in [driver, *driver.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                listening |= {
                    connection.laddr.ip
                    for connection in process.net_connections(kind="tcp")
                    if connection.status == psutil.CONN_LISTEN
                }
        time.sleep(0.05)
    assert driver.returncode == 0
    assert listening
    assert all(ip_address(address.removeprefix("::ffff:")).is_loopback for address in listening)


def test_repair_with_a_recipe_that_takes_some_of_the_blocks(copy: ObjectStore, recipe: Path) -> None:
    before, fewer = shards(copy), ("features.blocks=[6]", "network.blocks=[6]")
    assert main([str(recipe), f"cache.url={copy.url}", *fewer]) == 0
    assert shards(copy) == before
    copy.delete(min(before))
    assert main([str(recipe), f"cache.url={copy.url}", *fewer, "--repair"]) == 0
    assert shards(copy) == before
    assert cache_main(["verify", copy.url]) == 0


def test_repair_of_a_converted_shard_without_its_receipt(copy: ObjectStore, recipe: Path) -> None:
    twice = ("features.stored_dtype=int8", "features.stored_from=fp16")
    assert main([str(recipe), f"cache.url={copy.url}", "features.stored_dtype=fp16"]) == 0
    assert main([str(recipe), f"cache.url={copy.url}", *twice]) == 0
    manifest = find_manifest(copy, load_recipe(recipe, twice).request_digest("train"))
    assert manifest is not None
    before, lost = shards(copy), manifest.shards[0]
    copy.delete(lost.object_key)
    copy.delete(layout.receipt_key(lost.cache_key, lost.shard_id))
    assert main([str(recipe), f"cache.url={copy.url}", *twice, "--repair"]) == 0
    assert shards(copy) == before
    assert cache_main(["verify", copy.url]) == 0


@pytest.mark.parametrize("also_lost", [False, True])
def test_repair_finishes_a_repair_that_was_killed_before_it_renewed_the_manifest(
    copy: ObjectStore, recipe: Path, also_lost: bool
) -> None:
    manifest = find_manifest(copy, load_recipe(recipe).request_digest("train"))
    assert manifest is not None
    replaced, lost, *_ = manifest.shards
    place = layout.receipt_key(replaced.cache_key, replaced.shard_id)
    receipt = unseal(Receipt, copy.get(place))
    other = copy.get(receipt.object_key) + b"\0" * 10240  # as of other hardware: other bytes, another name
    sha256 = hashlib.sha256(other).hexdigest()
    key = layout.shard_key(replaced.cache_key, replaced.shard_id, sha256)
    copy.put(key, other)
    copy.put(
        place, seal(receipt.model_copy(update={"object_key": key, "sha256": sha256, "size": len(other)}))
    )
    if also_lost:
        copy.delete(lost.object_key)
    assert cache_main(["verify", copy.url]) == 1
    assert main([str(recipe), f"cache.url={copy.url}", "--repair"]) == 0
    assert cache_main(["verify", copy.url]) == 0
    renewed = find_manifest(copy, load_recipe(recipe).request_digest("train"))
    assert renewed is not None
    assert key in renewed.object_keys
