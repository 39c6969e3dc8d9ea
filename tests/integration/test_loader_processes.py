"""Worker processes of the loader: the very batches of one process, in order, from a real S3; none outlives its use."""

import json
import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from unit.pipeline.cache.made_cache import write_cache
from unit.pipeline.loading.made_draws import write_draws

from pipeline.cache.manifest import Manifest
from pipeline.cache.sample_reading import CorruptSampleError
from pipeline.loading.batch import Batch
from pipeline.loading.config import LoaderConfig
from pipeline.loading.loader import CacheLoader, SampleReader
from pipeline.loading.local_cache import LocalCache
from pipeline.loading.opening import open_evaluation_loader, open_training_loader
from pipeline.loading.sample_order import Position
from pipeline.loading.worker_processes import PlannedBatches
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore

pytestmark = pytest.mark.long  # `make test-cluster`

SAMPLES = (31, 29)


@pytest.fixture(scope="module")
def made(seaweedfs: object, tmp_path_factory: pytest.TempPathFactory) -> tuple[ObjectStore, Manifest]:
    folder = tmp_path_factory.mktemp("made")
    store = open_store("s3://tests/loader-processes")
    return store, write_draws(store, folder, samples=SAMPLES, per_shard=7)


@pytest.fixture
def loaders() -> Iterator[list[CacheLoader]]:
    """Closed at the end."""
    made: list[CacheLoader] = []
    yield made
    for loader in made:
        loader.close()


def worker_pids() -> set[int]:
    """Children of this process that run its code; Python's own resource tracker stays as long as the process does."""
    children = psutil.Process().children(recursive=True)
    return {one.pid for one in children if "spawn_main" in " ".join(one.cmdline())}


@pytest.fixture(autouse=True)
def nothing_left(loaders: list[CacheLoader]) -> Iterator[None]:
    before, threads = worker_pids(), threading.active_count()
    yield
    for loader in loaders:
        loader.close()
    assert worker_pids() == before
    assert threading.active_count() <= threads


def loader_of(
    made: tuple[ObjectStore, Manifest], loaders: list[CacheLoader], **options: object
) -> CacheLoader:
    nearer = options.pop("nearer", None)
    reader = SampleReader(store=made[0], manifest=made[1], nearer=nearer)  # type: ignore[arg-type]
    loaders.append(CacheLoader(reader=reader, **{"batch_size": 6, "window": 3, **options}))  # type: ignore[arg-type]
    return loaders[-1]


def assert_equal(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert (one.keys, one.facts) == (other.keys, other.facts)
        for name in ("latents", "context", "masks", "weight"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert list(one.features) == list(other.features)
        assert all(torch.equal(one.features[block], other.features[block]) for block in one.features)


def test_they_give_the_batches_of_one_process(
    made: tuple[ObjectStore, Manifest], loaders: list[CacheLoader], tmp_path: Path
) -> None:
    alone = loader_of(made, loaders, ranks=2, rank=1, remainder="pad")
    cache = LocalCache(tmp_path / "cache", limit=1 << 30)
    several = loader_of(made, loaders, ranks=2, rank=1, remainder="pad", processes=2, nearer=cache)
    generator = torch.random.get_rng_state()
    pids = set()
    for position in (Position(), Position(epoch=1, batch=2), Position(epoch=2)):
        assert_equal(list(several.epoch(position)), list(alone.epoch(position)))
        pids |= worker_pids()
    assert len(pids) == 2  # the same two all along
    assert torch.equal(torch.random.get_rng_state(), generator)  # a training's numbers do not depend on them
    assert cache.used > 0


def test_none_is_left_when_an_epoch_is_left_early(
    made: tuple[ObjectStore, Manifest], loaders: list[CacheLoader]
) -> None:
    loader = loader_of(made, loaders, processes=1)
    batches = loader.epoch(Position())
    first = next(batches)
    assert len(worker_pids()) == 1
    batches.close()  # type: ignore[attr-defined]
    assert not worker_pids()
    assert next(loader.epoch(Position())).keys == first.keys  # and it can begin anew


@pytest.mark.parametrize("on_corrupt", ["fail", "skip"])
def test_a_corrupt_sample_is_told_as_by_one_process(
    tmp_path: Path, loaders: list[CacheLoader], on_corrupt: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tmp_path / "store")
    manifest = write_cache(store, tmp_path, samples=12, per_shard=4)
    key = manifest.shards[1].object_key
    body = bytearray(store.get(key))
    body[3000] ^= 1
    store.put(key, bytes(body))
    options = {"on_corrupt": on_corrupt, "max_corrupt_share": 0.1}
    loader = loader_of((store, manifest), loaders, processes=1, **options)
    if on_corrupt == "fail":
        with pytest.raises(CorruptSampleError, match=f"{key} is not what its receipt vouches for") as caught:
            list(loader.epoch(Position()))
        assert str(caught.value).startswith("sample ") and "\n" not in str(caught.value)
        assert not worker_pids()
        return
    with caplog.at_level(logging.WARNING):
        assert_equal(
            list(loader.epoch(Position())),
            list(loader_of((store, manifest), loaders, **options).epoch(Position())),
        )
    assert [one.object_key for one in loader.skipped.values()] == [key]
    assert f"of {key}" in caplog.text


def test_what_goes_to_a_process_is_small_and_holds_no_secret(
    made: tuple[ObjectStore, Manifest], loaders: list[CacheLoader], tmp_path: Path
) -> None:
    store, manifest = made
    store.get(manifest.index.key)  # a client is there, with credentials
    reader = SampleReader(store=store, manifest=manifest)
    batches = PlannedBatches(
        url=store.url,
        blocks=(6, 8),
        nearer=LocalCache(tmp_path / "cache", limit=1),
        on_corrupt="fail",
        spares=reader.spares(),
        threads=1,
        sharing=1,
    )
    sent = pickle.dumps((batches, reader.plan(loader_of(made, loaders).order(0)[:6])))
    assert len(sent) < 8000
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert os.environ[name].encode() not in sent


LEAVES_EARLY = """
import os, sys
from pipeline.cache.manifest import read_manifest
from pipeline.loading.loader import CacheLoader, SampleReader
from pipeline.loading.sample_order import Position
from pipeline.object_store.opening import open_store

if __name__ == "__main__":
    store = open_store(sys.argv[1])
    manifest = read_manifest(store, cache_key=sys.argv[2], manifest_id=sys.argv[3])
    reader = SampleReader(store=store, manifest=manifest)
    loader = CacheLoader(reader=reader, batch_size=6, processes=1)
    batches = loader.epoch(Position())
    next(batches)
    import multiprocessing
    import json
    print(json.dumps([child.pid for child in multiprocessing.active_children()]), flush=True)
    if sys.argv[4] == "exception":
        raise SystemExit(3)
    if sys.argv[4] == "killed":
        os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(("how", "code"), [("exception", 3), ("killed", -9)])
def test_none_outlives_its_parent(
    made: tuple[ObjectStore, Manifest], tmp_path: Path, how: str, code: int
) -> None:
    script = tmp_path / "script.py"
    script.write_text(LEAVES_EARLY)
    store, manifest = made
    arguments = [sys.executable, str(script), store.url, manifest.cache_key, manifest.manifest_id, how]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        arguments,
        stdout=subprocess.PIPE,
        check=False,
        timeout=120,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert done.returncode == code
    pids = json.loads(done.stdout)
    assert len(pids) == 1
    waited = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(waited, timeout=30)
    assert not alive


def test_a_recipes_loader_is_made_as_it_says(
    made: tuple[ObjectStore, Manifest], loaders: list[CacheLoader], tmp_path: Path
) -> None:
    store, manifest = made
    config = LoaderConfig(
        processes=1,
        window=2,
        remainder="pad",
        local_cache=str(tmp_path / "near"),
        local_cache_gibibytes=0.001,
    )
    training = open_training_loader(config, store=store, manifest=manifest, batch_size=6, seed=3)
    assert isinstance(training, CacheLoader)
    evaluation = open_evaluation_loader(config, store=store, manifest=manifest, batch_size=6)
    loaders += [training, evaluation]
    plain = loader_of(made, loaders, window=2, remainder="pad", seed=3)
    assert_equal(list(training.epoch(Position(epoch=1))), list(plain.epoch(Position(epoch=1))))
    assert list((tmp_path / "near" / "samples").iterdir())
    counted = sum(int(batch.weight.sum()) for batch in evaluation.epoch(Position()))
    assert counted == SAMPLES[0]
