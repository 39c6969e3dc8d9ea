"""Sequential mode on a real S3, and the document's snippet for stock `webdataset`, run as it stands."""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import torch
from unit.pipeline.cache.made_cache import make_entries, write_cache
from unit.pipeline.loading.made_draws import make_draw, write_draws

from ldznet.errors import UserError
from pipeline.cache import layout
from pipeline.cache.manifest import Manifest
from pipeline.loading.batch import Batch
from pipeline.loading.config import LoaderConfig
from pipeline.loading.opening import open_training_loader
from pipeline.loading.sample_order import Position
from pipeline.loading.sequential import SequentialLoader
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore

pytestmark = pytest.mark.long  # `make test-cluster`

SAMPLES = (36, 33)
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "cache-format.md"


@pytest.fixture(scope="module")
def made(seaweedfs: object, tmp_path_factory: pytest.TempPathFactory) -> tuple[ObjectStore, Manifest]:
    store = open_store("s3://tests/sequential")
    return store, write_draws(store, tmp_path_factory.mktemp("made"), samples=SAMPLES, per_shard=6)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    children = psutil.Process().children(recursive=True)
    assert not [one for one in children if "spawn_main" in " ".join(one.cmdline())]


def loader(made: tuple[ObjectStore, Manifest], **options: object) -> SequentialLoader:
    usual = {"batch_size": 4, "shuffle_buffer": 8, "seed": 1}
    return SequentialLoader(store=made[0], manifest=made[1], **usual | options)  # type: ignore[arg-type]


def read(source: SequentialLoader, position: Position) -> list[Batch]:
    return list(source.epoch(position))


def test_every_rank_gets_as_many_batches_of_the_epochs_draw(made: tuple[ObjectStore, Manifest]) -> None:
    seen: list[Counter[str]] = []
    entries = {entry.key: entry for entry in make_draw(1, SAMPLES[1])}
    for rank in range(2):
        source = loader(made, rank=rank, ranks=2)
        assert len(source) == 33 // 4
        batches = read(source, Position(epoch=3))
        assert len(batches) == len(source)
        for batch in batches:
            assert batch.weight.tolist() == [1, 1]
            for row, key in enumerate(batch.keys):
                assert torch.equal(batch.latents[row], entries[key].latents)
                assert torch.equal(batch.features[8][row], entries[key].features[8])
                assert batch.facts[row]["draw"] == 1
        seen.append(Counter(key for batch in batches for key in batch.keys))
    assert not set(seen[0]) & set(seen[1])  # each rank has shards of its own


def test_processes_of_a_rank_share_its_shards(made: tuple[ObjectStore, Manifest]) -> None:
    batches = read(loader(made, processes=3), Position())
    keys = Counter(key for batch in batches for key in batch.keys)
    assert set(keys.values()) == {1}  # were a shard read by two of them, its samples would come twice


def test_an_epoch_repeats_and_another_differs_and_the_middle_is_found_again(
    made: tuple[ObjectStore, Manifest],
) -> None:
    source = loader(made, processes=2)
    first = [batch.keys for batch in read(source, Position())]
    assert len(first) == len(source)
    assert [batch.keys for batch in read(source, Position(batch=3))] == first[3:]
    with closing(source.epoch(Position(epoch=2))) as other:  # type: ignore[type-var]
        assert next(other).keys != first[0]  # and left early, its processes end


def test_too_few_shards_for_the_ranks_are_refused(made: tuple[ObjectStore, Manifest]) -> None:
    with pytest.raises(UserError, match="6 shards are too few for 4 ranks of 2 processes each"):
        loader(made, ranks=4, processes=2)


def test_a_recipe_chooses_it(made: tuple[ObjectStore, Manifest]) -> None:
    store, manifest = made
    config = LoaderConfig(mode="sequential", shuffle_buffer=8)
    source = open_training_loader(config, store=store, manifest=manifest, batch_size=4, seed=1)
    assert isinstance(source, SequentialLoader)
    assert len(source) == 33 // 4


@pytest.mark.parametrize(
    ("key", "value"), [("local_cache", "near"), ("on_corrupt", "skip"), ("remainder", "pad")]
)
def test_what_it_cannot_do_is_refused(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{key}.* goes with loader.mode=indexed"):
        LoaderConfig.model_validate({"mode": "sequential", key: value})


@pytest.mark.parametrize("place", ["file", "s3"])
def test_the_documents_snippet_reads_every_sample_without_this_project(
    place: str, tmp_path: Path, s3_url: str
) -> None:
    store = open_store(s3_url if place == "s3" else tmp_path / "a folder")
    manifest = write_cache(store, tmp_path, samples=9, per_shard=4)
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (snippet,) = [block for block in blocks if "import webdataset" in block]
    assert "pipeline" not in snippet
    assert "ldznet" not in snippet
    script = tmp_path / "read.py"
    script.write_text(snippet)
    listed = f"{store.url}/{layout.shard_list_key(manifest.cache_key, manifest.manifest_id)}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(script), listed],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=tmp_path,
        env=environment,
    )
    entries = {entry.key: entry for entry in make_entries(9)}
    lines = done.stdout.splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted(entries)
    for line in lines:
        phrase = entries[line.split()[0]].facts["phrase"]
        assert line.endswith(f"{phrase} (16, 16) (8, 2, 2)")
