"""Repair by computing again, with real networks: the very bytes come back."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ldznet.frozen_ldm import FrozenLDM
from ldznet.ldm_folder import ldm_digest
from pipeline.cache.committed_shard import CommittedShard
from pipeline.cache.content_digest import ContentDigests
from pipeline.cache.manifest import Manifest, write_manifest
from pipeline.cache.member_table import MemberTable, key_numbers
from pipeline.cache.plan import PlannedShard, plan_shards, shard_id
from pipeline.cache.spec import CacheSpec, FeaturesConfig, PolicyConfig
from pipeline.cache.verification import verify, verify_manifest
from pipeline.datasets.opening import DataConfig, open_dataset
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore
from pipeline.precompute.commit import commit_shard
from pipeline.precompute.networks import Networks
from pipeline.precompute.shard_repair import repair_needs, repair_shard
from pipeline.views import ViewConfig


@pytest.fixture(scope="module")
def networks(miniature_ldm: Path) -> Iterator[Networks]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with Networks(FrozenLDM.from_pretrained(miniature_ldm, last_block=10)) as ours:
        yield ours
    torch.set_num_threads(threads)


@pytest.fixture
def spec(miniature_ldm: Path) -> CacheSpec:
    return CacheSpec(
        ldm_digest=ldm_digest(miniature_ldm),
        features=FeaturesConfig(stored_dtype="fp32"),
        policy=PolicyConfig(view=ViewConfig(size=64)),
    )


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(tmp_path / "cache")


@pytest.fixture
def table(small_data: Path) -> Iterator[MemberTable]:
    dataset = open_dataset(DataConfig(format="folder", root=str(small_data)))
    digests = ContentDigests(store=dataset.store)
    with MemberTable.from_samples(dataset.samples("train"), draws=1, digest=digests) as ours:
        yield ours


@pytest.fixture
def manifest(
    spec: CacheSpec, table: MemberTable, networks: Networks, store: ObjectStore, small_data: Path
) -> Manifest:
    data = open_store(small_data)
    receipts = [
        commit_shard(planned.plan(table), spec=spec, ldm=networks, data=data, store=store)
        for planned in plan_shards(table, spec_key=spec.key, samples_per_shard=12)
    ]
    shards = [CommittedShard.from_receipts(receipt) for receipt in receipts]
    return write_manifest(store, spec=spec, dataset="small", split="train", shards=shards)


def test_what_is_gone_or_damaged_comes_back_byte_for_byte(
    manifest: Manifest, table: MemberTable, networks: Networks, store: ObjectStore, small_data: Path
) -> None:
    spec = manifest.spec
    before = {info.key: store.get(info.key) for info in store.list()}
    first, second = manifest.shards[0].object_key, manifest.shards[2].object_key
    store.delete(first)
    body = bytearray(before[second])
    body[1000] ^= 64
    store.put(second, bytes(body))
    needs = repair_needs(store, manifest, verify_manifest(store, manifest))
    assert {broken.reference.object_key for broken in needs.broken} == {first, second}
    for broken in needs.broken:
        rows = table.rows_with(key_numbers(broken.member_keys))
        assert (rows >= 0).all()
        assert shard_id(spec.key, table.keys[rows]) == broken.reference.shard_id
        plan = PlannedShard(shard_id=broken.reference.shard_id, rows=rows).plan(table)
        receipt = repair_shard(plan, spec=spec, networks=networks, data=open_store(small_data), store=store)
        assert receipt.object_key == broken.reference.object_key
    assert {info.key: store.get(info.key) for info in store.list()} == before
    assert verify(store).faults == ()
