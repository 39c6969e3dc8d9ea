"""Options of NCCL and gloo become the variables that those read; what is left out is left alone."""

import pytest
from pydantic import ValidationError

from pipeline.training.cluster_config import ClusterConfig
from pipeline.training.config import TrainConfig


def test_nothing_is_set_that_nobody_asked_for() -> None:
    assert ClusterConfig().environment() == {}


def test_options_become_variables() -> None:
    config = ClusterConfig(interface="eth1", nccl_debug="INFO", nccl_infiniband=False, nccl_adapters="mlx5_0")
    assert config.environment() == {
        "NCCL_SOCKET_IFNAME": "eth1",
        "GLOO_SOCKET_IFNAME": "eth1",
        "NCCL_DEBUG": "INFO",
        "NCCL_IB_DISABLE": "1",
        "NCCL_IB_HCA": "mlx5_0",
    }


@pytest.mark.parametrize(
    "wrong", [{"nccl_debug": "LOUD"}, {"placement": "ANY"}, {"wait_minutes": 0}, {"interface": ""}]
)
def test_what_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ClusterConfig.model_validate(wrong)


def test_where_ranks_lie_is_no_part_of_a_training() -> None:
    base = TrainConfig(steps=1)
    moved = TrainConfig(steps=1, cluster=ClusterConfig(placement="SPREAD", interface="eth0"))
    assert base.identity() == moved.identity()


def test_a_range_of_ranks_keeps_the_batch_and_what_fits_into_a_gpu() -> None:
    most = TrainConfig.model_validate({"steps": 1, "batch_size": 32, "workers": {"min": 2, "max": 8}})
    assert (most.rank_batch, most.micro_batch_size, most.accumulation) == (4, 4, 1)
    assert [most.fitting_ranks(room) for room in (9, 8, 7, 3, 1, 0)] == [8, 8, 4, 2, 1, 0]
    two = most.on_ranks(2)
    assert (two.workers, two.rank_batch, two.micro_batch_size, two.accumulation) == (2, 16, 4, 4)
    assert most.on_ranks(8).accumulation == 1
    assert most.identity() == two.identity()
    assert most.fitted_to_gpus(2) == most
