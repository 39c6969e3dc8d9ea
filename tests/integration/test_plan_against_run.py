"""`ldznet plan` held against a real precompute and a real epoch of reading: counts exact, bytes within 5 %."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.plan import main
from ldznet.frozen_ldm import FrozenLDM
from pipeline.cache.committed_shard import CommittedShard
from pipeline.cache.manifest import Manifest
from pipeline.datasets.opening import open_dataset
from pipeline.loading.loader import CacheLoader, SampleReader
from pipeline.loading.sample_order import Position
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore
from pipeline.precompute.commit import commit_shard
from pipeline.precompute.conversion import convert_shard
from pipeline.precompute.networks import Networks
from pipeline.precompute.sets import SetPlan, finish_set, missing_work, plan_sets
from pipeline.recipe import Recipe
from pipeline.recipe_file import load_recipe

pytestmark = pytest.mark.long  # `make test-cluster`

QUICK = ("--seconds", "2")


class CountingStore:
    """A store that counts the requests by which objects are written and read."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.counts: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name not in {"get", "get_range", "get_range_into", "put", "create", "replace"}:
            return found

        def call(*arguments: Any, **named: Any) -> Any:
            self.counts["PUT" if name in {"put", "create", "replace"} else "GET"] += 1
            return found(*arguments, **named)

        return call


@pytest.fixture(scope="module")
def ldm(miniature_ldm: Path) -> Iterator[FrozenLDM]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield FrozenLDM.from_pretrained(miniature_ldm)
    torch.set_num_threads(threads)


@pytest.fixture
def planned(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """The plan of a recipe, by the command. The calibration decodes every member, however slow the machine is."""
    monkeypatch.setattr("pipeline.planning.calibration._LEAST_MEMBERS", 10**6)

    def run(*arguments: object) -> dict[str, Any]:
        capsys.readouterr()
        assert main([*map(str, arguments), "--json", *QUICK]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def sets_of(plan: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["set_name"]: one for one in plan["sets"]}


def compute(
    recipe: Recipe, ldm: FrozenLDM, *, shards: int | None = None
) -> tuple[dict[str, Manifest], dict[str, Counter[str]], list[int]]:
    """A real precompute in this process: manifests, requests a set, and bytes of every shard written.

    `shards` ends it after so many shards of the first set, as if it had been killed.
    """
    manifests, requests, written = {}, {}, []
    with Networks(ldm, threads=1) as networks:
        for plan in plan_sets(recipe, store=open_store(recipe.cache.url)):
            with plan.table:
                store, data = (
                    CountingStore(open_store(recipe.cache.url)),
                    CountingStore(open_dataset(plan.data).store),
                )
                work = missing_work(plan, store=open_store(recipe.cache.url))[:shards]
                receipts = {
                    one.name: _commit(plan, one, networks=networks, data=data, store=store) for one in work
                }
                written += [receipt.size for receipt in receipts.values()]
                computed = {name: CommittedShard.from_receipts(receipt) for name, receipt in receipts.items()}
                if shards is not None:
                    break
                result = finish_set(recipe, plan, store=store, computed=computed)  # type: ignore[arg-type]
                manifests[plan.set_name] = result.manifest
                requests[plan.set_name] = store.counts + data.counts
    return manifests, requests, written


def _commit(plan: SetPlan, one: Any, *, networks: Networks, data: Any, store: Any) -> Any:
    if one.source is not None:
        return convert_shard(one.source, spec=one.spec, shard_id=one.shard.shard_id, store=store)
    return commit_shard(one.shard.plan(plan.table), spec=one.spec, ldm=networks, data=data, store=store)


def objects(store: ObjectStore) -> dict[str, str]:
    return {info.key: info.etag for info in store.list()}


def test_it_holds_against_a_real_run(
    small_recipe: Callable[..., Path], planned: Callable[..., dict[str, Any]], ldm: FrozenLDM
) -> None:
    path = small_recipe(features={"stored_dtype": "fp16", "keep_images": True})
    recipe = load_recipe(path)
    plan = planned(path)
    assert not Path(recipe.cache.url).exists()
    manifests, requests, _ = compute(recipe, ldm)
    for name, told in sets_of(plan).items():
        manifest = manifests[name]
        assert told["members"] == told["members_to_compute"]
        assert told["members"] == manifest.samples + manifest.filtered + manifest.failed
        assert told["samples"] == manifest.samples  # so few that the calibration decodes all of them
        assert told["shards"] == len(manifest.shards)
        assert told["bytes"] == pytest.approx(manifest.size, rel=0.05)
        assert {"PUT": told["puts"], "GET": told["gets"]} == requests[name]


def test_faulty_data_is_reckoned_with(
    small_recipe: Callable[..., Path],
    small_data: Path,
    tmp_path: Path,
    planned: Callable[..., dict[str, Any]],
    ldm: FrozenLDM,
) -> None:
    folder = Path(shutil.copytree(small_data, tmp_path / "faulty"))
    (folder / "images/3.png").write_bytes(b"no image")
    for number in (12, 13, 14):  # every photo of `val`
        (folder / f"images/{number}.png").write_bytes(b"none either")
    path = small_recipe(
        data={"format": "folder", "root": str(folder)},
        cache={"url": str(tmp_path / "cache"), "shard_mebibytes": 1, "max_failed_share": 1},
    )
    told = sets_of(planned(path))
    manifests, _, _ = compute(load_recipe(path), ldm)
    assert manifests["train"].failed == 3 * 4
    assert told["train"]["samples"] == manifests["train"].samples
    assert told["train"]["bytes"] == pytest.approx(manifests["train"].size, rel=0.05)
    assert (told["val"]["members"], manifests["val"].samples) == (9, 0)
    assert told["val"]["stages"]["unet_s"] == 0  # no sample of it is sound, so nothing was timed


@pytest.mark.parametrize("workers", [1, 2])
def test_an_epoch_of_reading_is_as_planned(
    small_recipe: Callable[..., Path], planned: Callable[..., dict[str, Any]], ldm: FrozenLDM, workers: int
) -> None:
    path = small_recipe(
        train={"batch_size": 8, "workers": workers, "lr": 1e-3, "steps": 4}, loader={"window": 5}
    )
    training = planned(path)["training"]
    recipe = load_recipe(path)
    manifests, _, _ = compute(recipe, ldm)
    store = CountingStore(open_store(recipe.cache.url))
    for rank in range(workers):
        reader = SampleReader(store=store, manifest=manifests["train"])  # type: ignore[arg-type]
        store.counts.clear() if rank == 0 else store.counts.subtract(
            {"GET": 1}
        )  # its index is not an epoch's
        loader = CacheLoader(
            reader=reader, batch_size=8, rank=rank, ranks=workers, seed=recipe.train.seed, window=5
        )
        assert sum(1 for _ in loader.epoch(Position())) > 0
    of_first = [shard for shard in manifests["train"].shards if shard.draw == 0]
    assert len(of_first) < len(manifests["train"].shards)
    assert training["samples"] == pytest.approx(sum(shard.samples for shard in of_first), abs=2)
    assert training["gets"] == pytest.approx(store.counts["GET"], abs=2)
    assert training["bytes"] == pytest.approx(sum(shard.size for shard in of_first), rel=0.1)


def test_what_is_there_is_told_and_not_counted_again(
    small_recipe: Callable[..., Path], planned: Callable[..., dict[str, Any]], ldm: FrozenLDM
) -> None:
    path = small_recipe()
    recipe, store = load_recipe(path), open_store(load_recipe(path).cache.url)
    whole = sets_of(planned(path))["train"]
    compute(recipe, ldm, shards=2)
    before = objects(store)
    partly = sets_of(planned(path))["train"]
    assert partly["committed_shards"] == 2
    assert partly["shards"] == whole["shards"] - 2
    manifests, requests, written = compute(recipe, ldm)
    assert {"PUT": partly["puts"], "GET": partly["gets"]} == requests["train"]
    assert partly["bytes"] == pytest.approx(sum(written[:-1]), rel=0.05)  # the last one is the other set's
    assert before.items() <= objects(store).items()

    before = objects(store)
    done = planned(path)
    assert objects(store) == before
    for name, told in sets_of(done).items():
        assert (told["shards"], told["bytes"], told["puts"], told["gets"]) == (0, 0, 0, 0)
        assert told["kept_samples"] == manifests[name].samples
        assert told["kept_bytes"] == manifests[name].size
    assert done["training"]["precompute_s"] == 0
    assert {one["epochs"] for one in done["training"]["paybacks"]} == {0}


@pytest.mark.parametrize("change", [{"blocks": [5, 6, 7, 8, 9, 10, 11]}, {"stored_dtype": "int8"}])
def test_an_increment_is_planned_as_it_is_computed(
    small_recipe: Callable[..., Path],
    planned: Callable[..., dict[str, Any]],
    ldm: FrozenLDM,
    change: dict[str, Any],
) -> None:
    compute(load_recipe(small_recipe()), ldm)
    path = small_recipe(features={"stored_dtype": "fp32"} | change)
    told = sets_of(planned(path))
    manifests, requests, written = compute(load_recipe(path), ldm)
    assert sum(one["shards"] for one in told.values()) == len(written) > 0
    assert sum(one["bytes"] for one in told.values()) == pytest.approx(sum(written), rel=0.05)
    for name, one in told.items():
        assert {"PUT": one["puts"], "GET": one["gets"]} == requests[name]
        computed = manifests[name].samples + manifests[name].filtered
        assert one["members_to_convert" if "stored_dtype" in change else "members_to_compute"] > 0
        assert one["members_to_convert"] + one["members_to_compute"] <= computed
