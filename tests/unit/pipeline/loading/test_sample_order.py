"""The order of samples: each once an epoch, equal for any number of ranks, and a good shuffle."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.loading.sample_order import (
    PADDING,
    Position,
    Remainder,
    SampleOrder,
    batches_in_epoch,
    contiguous_runs,
    epoch_order,
    rank_share,
)

shards = st.lists(st.integers(0, 40), min_size=0, max_size=8).map(lambda sizes: np.array(sizes, np.int64))


@given(sizes=shards, seed=st.integers(0, 3), epoch=st.integers(0, 3), window=st.integers(1, 9))
def test_each_row_once_an_epoch(sizes: np.ndarray, seed: int, epoch: int, window: int) -> None:
    order = epoch_order(sizes, seed=seed, epoch=epoch, window=window)
    assert np.array_equal(np.sort(order), np.arange(sizes.sum()))
    assert np.array_equal(order, epoch_order(sizes, seed=seed, epoch=epoch, window=window))


@given(sizes=shards, ranks=st.sampled_from([1, 2, 4, 8]), remainder=st.sampled_from(["drop", "pad"]))
def test_ranks_share_the_same_global_batches(sizes: np.ndarray, ranks: int, remainder: str) -> None:
    order = epoch_order(sizes, seed=1, epoch=2, window=4)
    batches = batches_in_epoch(len(order), batch_size=8, remainder=remainder)  # type: ignore[arg-type]
    seen = []
    for batch in range(batches):
        alone = rank_share(order, batch=batch, batch_size=8, rank=0, ranks=1)
        shares = [
            rank_share(order, batch=batch, batch_size=8, rank=rank, ranks=ranks) for rank in range(ranks)
        ]
        assert all(len(share) == 8 // ranks for share in shares)
        assert np.array_equal(np.concatenate(shares), alone)
        seen.append(alone)
    rows = np.concatenate(seen) if seen else np.empty(0, np.int64)
    rows = rows[rows != PADDING]
    assert len(set(rows.tolist())) == len(rows)
    assert len(rows) == (len(order) if remainder == "pad" else len(order) // 8 * 8)


@given(sizes=shards, window=st.integers(1, 8))
def test_runs_are_neighbours_in_one_shard(sizes: np.ndarray, window: int) -> None:
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    order = epoch_order(sizes, seed=0, epoch=0, window=window)
    runs = list(contiguous_runs(order, shard_of))
    assert np.array_equal(np.concatenate(runs) if runs else np.empty(0, np.int64), order)
    for run in runs:
        assert np.array_equal(run, np.arange(run[0], run[0] + len(run)))
        assert len(set(shard_of[run].tolist())) == 1


def test_epochs_differ_and_neighbours_part() -> None:
    sizes = np.array([400, 400, 400], np.int64)
    first, second = (epoch_order(sizes, seed=0, epoch=epoch, window=8) for epoch in range(2))
    assert not np.array_equal(first, second)
    # Two rows share a batch of 8 in both epochs rarely: windows start at another phase each epoch.
    together = [{frozenset(batch.tolist()) for batch in order.reshape(-1, 8)} for order in (first, second)]
    assert len(together[0] & together[1]) < 3


def test_positions_are_uncorrelated_with_storage_order() -> None:
    order = epoch_order(np.full(20, 500, np.int64), seed=3, epoch=0, window=8)
    correlation = np.corrcoef(np.arange(len(order)), order)[0, 1]
    assert abs(correlation) < 0.1


def test_the_order_of_one_draw_is_that_of_before_there_were_draws() -> None:
    # Written down then: a checkpoint of that time goes on with the very next sample.
    sizes = np.array([7, 0, 23, 40, 1, 9])
    orders = [
        epoch_order(sizes, seed=seed, epoch=epoch, window=window)
        for seed in (0, 3)
        for epoch in (0, 5)
        for window in (1, 4, 8)
    ]
    digest = hashlib.sha256(np.concatenate(orders).astype("<i8").tobytes()).hexdigest()
    assert digest == "7df8659be892be54e8c842c2d567fba5a2f19887f09bdc5f5fee41e2dd649bef"


@dataclass(frozen=True)
class Shard:
    samples: int
    draw: int


manifests = st.lists(
    st.builds(Shard, samples=st.integers(0, 30), draw=st.integers(0, 3)), min_size=1, max_size=9
)
remainders: st.SearchStrategy[Remainder] = st.sampled_from(["drop", "pad"])


def made(shards: list[Shard], **options: Any) -> SampleOrder:
    return SampleOrder.of(shards, **{"batch_size": 8, "window": 3} | options)


@given(manifests, st.integers(0, 9), st.integers(0, 3))
def test_an_epoch_reads_each_sample_of_its_draw_once(shards: list[Shard], epoch: int, seed: int) -> None:
    order = made(shards, seed=seed)
    draw_of_row = np.repeat([shard.draw for shard in shards], [shard.samples for shard in shards])
    draw = epoch % (max(shard.draw for shard in shards) + 1)
    rows = order.rows(epoch)
    assert np.array_equal(np.sort(rows), np.flatnonzero(draw_of_row == draw))
    assert len(rows) == order.samples_in(epoch)
    assert np.array_equal(rows, made(shards, seed=seed).rows(epoch))


@given(manifests, st.integers(0, 9), remainders, st.sampled_from([1, 2, 4, 8]))
def test_every_epoch_and_rank_has_as_many_batches(
    shards: list[Shard], epoch: int, remainder: Remainder, ranks: int
) -> None:
    order = made(shards, remainder=remainder)
    alone = list(order.shares(Position(epoch=epoch), rank=0, ranks=1))
    assert len(alone) == len(order)
    shares = [list(order.shares(Position(epoch=epoch), rank=rank, ranks=ranks)) for rank in range(ranks)]
    assert {len(share) for share in shares} == {len(order)}
    for number, whole in enumerate(alone):
        assert np.array_equal(np.concatenate([share[number] for share in shares]), whole)
    rows = np.concatenate(alone) if alone else np.empty(0, np.int64)
    rows = rows[rows != PADDING]
    assert len(set(rows.tolist())) == len(rows)
    if remainder == "drop":
        assert len(rows) == 8 * len(order)
    else:
        fewest = min(order.samples_in(draw) for draw in range(order.draw_count))
        assert len(rows) >= fewest


@given(manifests, st.integers(0, 9), st.integers(0, 40), remainders, st.sampled_from([1, 2, 4]))
def test_any_position_gives_the_tail_on_any_number_of_ranks(
    shards: list[Shard], epoch: int, batch: int, remainder: Remainder, ranks: int
) -> None:
    order = made(shards, remainder=remainder)
    whole = list(order.shares(Position(epoch=epoch), rank=0, ranks=1))[batch:]
    position = Position(epoch=epoch, batch=batch)
    shares = zip(*(order.shares(position, rank=rank, ranks=ranks) for rank in range(ranks)), strict=True)
    assert [np.concatenate(parts).tolist() for parts in shares] == [rows.tolist() for rows in whole]


@given(manifests, st.integers(0, 9))
def test_evaluation_takes_draw_0_once_in_the_order_of_storage(shards: list[Shard], epoch: int) -> None:
    order = made(shards, shuffle=False, remainder="pad")
    draw_of_row = np.repeat([shard.draw for shard in shards], [shard.samples for shard in shards])
    batches = list(order.shares(Position(epoch=epoch), rank=0, ranks=1))
    rows = np.concatenate(batches) if batches else np.empty(0, np.int64)
    assert rows[rows != PADDING].tolist() == np.flatnonzero(draw_of_row == 0).tolist()


def test_draws_come_round_in_their_turn() -> None:
    order = made([Shard(5, 0), Shard(9, 2), Shard(7, 1), Shard(4, 0)], batch_size=2)
    assert [order.samples_in(epoch) for epoch in range(6)] == [9, 7, 9, 9, 7, 9]
    assert len(order) == 3  # of the draw with 7
    assert not np.array_equal(order.rows(0), order.rows(3))
