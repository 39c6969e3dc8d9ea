"""Impossible combinations are refused by name; what is derived is right."""

from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.training.config import TrainConfig
from pipeline.training.schedule import learning_rate


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"epochs": 0}, "greater than 0"),
        ({"steps": 5, "batch_size": 9, "workers": 2}, "batch_size=9 does not divide among workers=2"),
        ({"steps": 5, "batch_size": 12, "workers": 2, "micro_batch": 4}, "workers x micro_batch = 2 x 4"),
        ({"steps": 5, "engine": "ddp", "zero_stage": 1}, "engine=ddp has no ZeRO"),
        ({"steps": 5, "engine": "ddp", "offload": True}, "offload needs"),
        ({"steps": 5, "zero_stage": 0, "offload": True}, "offload needs"),
        ({"steps": 5, "warmup_steps": 5}, "leaves nothing"),
        ({"steps": 5, "patience": 2}, "set validate_every"),
        ({"steps": 5, "lr": 0}, "greater than 0"),
        ({"steps": 5, "zero_stage": 4}, "zero_stage"),
        ({"steps": 5, "best_metric": "mIoU"}, "'miou', 'iou_fg' or 'ap'"),
        ({"steps": 5, "zero_stge": 2}, "zero_stge"),
    ],
)
def test_impossible_combinations_are_named(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        TrainConfig(**wrong)


def test_the_effective_batch_is_kept_when_the_ranks_change() -> None:
    two = TrainConfig(steps=1, batch_size=24, workers=2, micro_batch=4)
    six = two.model_copy(update={"workers": 6})
    assert [(c.rank_batch, c.micro_batch_size, c.accumulation) for c in (two, six)] == [(12, 4, 3), (4, 4, 1)]


def test_ranks_fit_the_gpus_and_the_batch_is_kept() -> None:
    four = TrainConfig(steps=1, batch_size=24, workers=4, micro_batch=2)
    ranks = [
        (four.fitted_to_gpus(gpus).workers, four.fitted_to_gpus(gpus).accumulation) for gpus in (0, 1, 3, 8)
    ]
    assert ranks == [(4, 3), (1, 12), (3, 4), (4, 3)]
    assert TrainConfig(steps=1, batch_size=8, workers=4).fitted_to_gpus(3).workers == 2


def test_published_learning_rate_is_the_default() -> None:
    assert TrainConfig(steps=1, batch_size=32).peak_lr == pytest.approx(1.6e-5)


def test_stage_follows_the_engine() -> None:
    assert TrainConfig(steps=1).stage == 2
    assert TrainConfig(steps=1, zero_stage=0).stage == 0
    assert TrainConfig(steps=1, engine="ddp").stage == 0


def test_identity_sees_what_changes_numbers_and_nothing_else() -> None:
    base = TrainConfig(steps=10, batch_size=8)
    same = TrainConfig(
        epochs=3, batch_size=8, workers=4, micro_batch=1, zero_stage=3, lr=5e-7 * 8, log_every=7
    )
    assert same.identity() == base.identity()
    assert TrainConfig(steps=10, batch_size=16).identity() != base.identity()
    assert TrainConfig(steps=10, batch_size=8, seed=1).identity() != base.identity()


def test_epochs_become_steps() -> None:
    assert TrainConfig(epochs=1.5).total_steps(10) == 15
    assert TrainConfig(epochs=0.01).total_steps(10) == 1


def test_schedules_warm_up_and_come_down() -> None:
    def rates(**options: Any) -> list[float]:
        config = TrainConfig(steps=10, lr=1.0, warmup_steps=2, **options)
        return [learning_rate(config, step=step, total=10) for step in range(11)]

    assert rates() == [0.5, 1.0] + [1.0] * 9
    linear = rates(schedule="linear")
    assert linear[:4] == [0.5, 1.0, 1.0, 0.875]
    assert linear[10] == 0
    cosine = rates(schedule="cosine")
    assert cosine[6] == pytest.approx(0.5)
    assert cosine[10] == pytest.approx(0)
