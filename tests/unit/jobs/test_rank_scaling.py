"""How many ranks a cluster has room for, how they are asked for, and how long they are waited for."""

from typing import Any

import pytest

from jobs import rank_scaling, train_ranks
from ldznet.errors import UserError
from pipeline.training.config import TrainConfig


def config(**options: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        {"steps": 1, "batch_size": 24, "workers": {"min": 2, "max": 8}, **options}
    )


def asked(monkeypatch: pytest.MonkeyPatch, options: TrainConfig, *, gpus: int = 0) -> Any:
    monkeypatch.setattr(train_ranks, "cluster_gpus", lambda: gpus)
    return train_ranks.scaling_config(options)


@pytest.mark.parametrize(
    ("room", "ranks"),
    [([8], 8), ([4, 3], 4), ([3, 2], 4), ([1, 2], 2), ([1], 1), ([], 0)],
)
def test_the_batch_divides_among_the_ranks(
    monkeypatch: pytest.MonkeyPatch, room: list[int], ranks: int
) -> None:
    """24 samples in micro batches of 3: 8, 4, 2 or 1 ranks."""
    options = config(threads=2)
    policy = rank_scaling.ElasticRanks(asked(monkeypatch, options), options)
    nodes = {f"node {number}": {"CPU": 2.0 * count + 1, "memory": 1e9} for number, count in enumerate(room)}
    assert policy._count_possible_workers(nodes) == ranks


def test_accelerators_are_counted_though_they_are_reserved_in_thousandths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = config(batch_size=21, workers={"max": 7}, cluster={"accelerator": "A100", "device": "gpu"})
    scaling = asked(monkeypatch, options)
    assert scaling._resources_per_worker_not_none == {"CPU": 1, "GPU": 1, "accelerator_type:A100": 0.001}
    reserved = {"CPU": 7.0, "GPU": 7.0, "accelerator_type:A100": sum([0.001] * 7)}
    policy = rank_scaling.ElasticRanks(scaling, options)
    assert policy._count_possible_workers({"one": reserved, "another": {"CPU": 64.0, "GPU": 8.0}}) == 7


def test_what_ranks_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = asked(monkeypatch, config(workers=4, threads=3, cluster={"placement": "STRICT_SPREAD"}), gpus=4)
    assert (fixed.num_workers, fixed.use_gpu, fixed.placement_strategy) == (4, True, "STRICT_SPREAD")
    assert fixed.resources_per_worker == {"CPU": 3, "GPU": 1}
    assert isinstance(rank_scaling.rank_scaling(fixed, config()), rank_scaling.FixedRanks)
    elastic = asked(monkeypatch, config(cluster={"resize_seconds": 7}), gpus=1)
    assert (elastic.num_workers, elastic.elastic_resize_monitor_interval_s) == ((2, 8), 7)
    assert isinstance(rank_scaling.rank_scaling(elastic, config()), rank_scaling.ElasticRanks)
    assert not asked(monkeypatch, config(cluster={"device": "cpu"}), gpus=8).use_gpu
    assert asked(monkeypatch, config(workers=4, cluster={"device": "gpu"}), gpus=0).use_gpu
    with pytest.raises(UserError, match=r"train\.workers=4 ranks, but the cluster has 2 GPUs"):
        asked(monkeypatch, config(workers=4), gpus=2)


def test_room_is_waited_for_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("jobs.rank_scaling.time.monotonic", lambda: now)
    options = config(threads=2, cluster={"accelerator": "H100", "wait_minutes": 5})
    patience = rank_scaling._Patience(options)
    patience.waiting()
    now += 299
    patience.waiting()
    patience.running()
    now += 299
    patience.waiting()  # a loss later on has a patience of its own
    now += 301
    says = "no room for 2 to 8 ranks of 2 CPU threads on H100 within 5 minutes: lower train.workers"
    with pytest.raises(UserError, match=says):
        patience.waiting()
