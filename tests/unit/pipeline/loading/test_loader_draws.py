"""Draws: each epoch reads one, in its turn; evaluation reads the first; none is mixed with another."""

from collections import Counter

import pytest
from unit.pipeline.loading.made_draws import make_draw, write_draws

from pipeline.cache.manifest import Manifest, read_manifest
from pipeline.loading.batch import Batch
from pipeline.loading.loader import CacheLoader, SampleReader
from pipeline.loading.sample_order import Position
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore

SAMPLES = (23, 20, 26)  # of each draw


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ObjectStore, Manifest]:
    folder = tmp_path_factory.mktemp("draws")
    store = open_store(folder / "store")
    written = write_draws(store, folder, samples=SAMPLES, per_shard=6)
    return store, read_manifest(store, cache_key=written.cache_key, manifest_id=written.manifest_id)


def loader(made: tuple[ObjectStore, Manifest], **options: object) -> CacheLoader:
    reader = SampleReader(store=made[0], manifest=made[1])
    return CacheLoader(reader=reader, **{"batch_size": 4, "window": 3, **options})  # type: ignore[arg-type]


def counted(batch: Batch) -> list[str]:
    return [key for key, weight in zip(batch.keys, batch.weight.tolist(), strict=True) if weight]


def test_epochs_cycle_through_the_draws(made: tuple[ObjectStore, Manifest]) -> None:
    cycling = loader(made)
    assert len(cycling) == 20 // 4
    for epoch in range(5):
        draw = epoch % 3
        batches = list(cycling.epoch(Position(epoch=epoch)))
        assert len(batches) == len(cycling)
        assert {facts["draw"] for batch in batches for facts in batch.facts} == {draw}
        keys = Counter(key for batch in batches for key in counted(batch))
        assert max(keys.values()) == 1
        assert set(keys) <= {entry.key for entry in make_draw(draw, SAMPLES[draw])}


def test_a_draw_comes_again_in_another_order(made: tuple[ObjectStore, Manifest]) -> None:
    cycling = loader(made, batch_size=20)
    first, again = (counted(next(cycling.epoch(Position(epoch=epoch)))) for epoch in (1, 4))
    assert set(first) == set(again)
    assert first != again


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_evaluation_takes_the_first_draw_each_sample_once(
    made: tuple[ObjectStore, Manifest], ranks: int, epoch: int
) -> None:
    keys = [
        key
        for rank in range(ranks)
        for batch in loader(made, rank=rank, ranks=ranks, shuffle=False, remainder="pad").epoch(
            Position(epoch=epoch)
        )
        for key in counted(batch)
    ]
    assert sorted(keys) == [entry.key for entry in make_draw(0, SAMPLES[0])]


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_resuming_in_any_draw_gives_the_rest(made: tuple[ObjectStore, Manifest], epoch: int) -> None:
    whole = [batch.keys for batch in loader(made).epoch(Position(epoch=epoch))]
    for batch in range(len(whole) + 1):
        rest = [one.keys for one in loader(made).epoch(Position(epoch=epoch, batch=batch))]
        assert rest == whole[batch:]
