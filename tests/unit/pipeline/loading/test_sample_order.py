"""The order of samples: each once an epoch, equal for any number of ranks, and a good shuffle."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.loading.sample_order import PADDING, batches_in_epoch, contiguous_runs, epoch_order, rank_share

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
