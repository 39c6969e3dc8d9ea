"""Ranks killed anywhere: the training goes on from the last whole checkpoint, as though nothing had happened."""

import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fault.plain_ranks import ENGINES, EVERY, MOMENTS, STEPS, Blow, Training, draw_blow, rank_processes

from pipeline.training.checkpoint_store import SCRATCH
from pipeline.training.preemption import EXIT_CODE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("scratch")
    with rank_processes(folder):
        yield folder


def tell(line: str) -> None:
    """Figures for whoever runs the tests with `-s`."""
    sys.stdout.write(f"{line}\n")


def undisturbed(folder: Path, name: str, *, dropout: float = 0.2, steps: int = STEPS) -> Training:
    options = ENGINES[name] | {"steps": steps}
    training = Training(folder=folder / f"calm-{name}", options=options, dropout=dropout)
    assert training.start() == [0, 0]
    return training


@pytest.mark.parametrize("name", ENGINES)
def test_killed_ranks_change_no_bit(scratch: Path, tmp_path: Path, name: str, long_form: bool) -> None:
    kills = 20 if long_form else 3
    steps = EVERY * (kills + 1)
    calm = undisturbed(tmp_path, name, steps=steps)
    training = Training(folder=tmp_path / "struck", options=ENGINES[name] | {"steps": steps})
    draw = random.Random(f"{name} 1")  # noqa: S311 - no secret
    for _ in range(kills):
        blow = draw_blow(draw, after=training.newest)
        assert_struck(training, blow)
    assert_goes_on_as(calm, training)
    assert training.checkpoints == [steps - EVERY, steps]
    assert list(scratch.glob(f"{SCRATCH}*")) == []
    tell(f"{name}: {kills} ranks killed, {len(training.attempts)} starts, no bit changed")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_in_any_moment_of_a_step_changes_no_bit(scratch: Path, tmp_path: Path, moment: str) -> None:
    calm = undisturbed(tmp_path, "ddp")
    training = Training(folder=tmp_path / "struck", options=ENGINES["ddp"])
    assert_struck(training, Blow(rank=0, step=5, moment=moment))
    # The first checkpoint may still have been on its way; the second becomes visible by its seal.
    assert training.newest in ({2 * EVERY} if moment == "sealed" else {0, EVERY})
    assert_goes_on_as(calm, training)


def assert_struck(training: Training, blow: Blow) -> None:
    codes = training.start(blow=blow)
    assert codes[blow.rank] == -signal.SIGKILL, (blow, codes)
    assert 0 not in codes


def assert_goes_on_as(calm: Training, training: Training) -> None:
    """The last start ends the training, and all that any start saw is what the undisturbed one saw."""
    assert training.start() == [0, 0]
    expected, got = calm.weights, training.weights
    assert got.keys() == expected.keys()
    for name in expected:
        assert torch.equal(got[name], expected[name]), name
    (whole,) = calm.attempts
    for attempt in training.attempts:
        for step, seen in attempt.items():
            if seen["keys"] == whole[step]["keys"]:
                assert seen.get("loss", whole[step]["loss"]) == whole[step]["loss"]
            else:  # a killed rank did not come to write down its own
                assert set(seen["keys"]) < set(whole[step]["keys"])
                assert "loss" not in seen


@pytest.mark.parametrize("name", ["zero-1", "zero-2", "zero-3"])
def test_other_numbers_of_ranks_go_on_with_the_same_samples(scratch: Path, tmp_path: Path, name: str) -> None:
    """From two ranks to one and to four: the same samples in the same order, losses to 1e-5, weights to 1e-5."""
    calm = undisturbed(tmp_path, name, dropout=0.0)
    (whole,) = calm.attempts
    for ranks in (1, 4):
        training = Training(folder=tmp_path / f"on-{ranks}", options=ENGINES[name], dropout=0.0)
        assert 0 not in training.start(blow=Blow(rank=ranks % 2, step=7, moment="forward"))
        assert training.start(ranks=ranks) == [0] * ranks
        _, second = training.attempts
        assert min(second) in {
            EVERY + 1,
            2 * EVERY + 1,
        }  # the second checkpoint may still have been on its way
        assert max(second) == STEPS
        for step, seen in second.items():
            assert seen["keys"] == whole[step]["keys"]
            assert seen["loss"] == pytest.approx(whole[step]["loss"], rel=1e-5)
        for key, expected in calm.weights.items():
            torch.testing.assert_close(training.weights[key], expected, rtol=1e-5, atol=1e-5)
        assert training.checkpoints == [STEPS - EVERY, STEPS]


@pytest.mark.parametrize("name", ["ddp", "zero-3"])
def test_a_notice_to_one_rank_takes_all_away_cleanly(scratch: Path, tmp_path: Path, name: str) -> None:
    calm = undisturbed(tmp_path, name)
    training = Training(folder=tmp_path / "noticed", options=ENGINES[name])
    for step, moment in ((5, "forward"), (9, "snapshot")):
        blow = Blow(rank=1, step=step, moment=moment, signal=signal.SIGTERM)
        assert training.start(blow=blow) == [EXIT_CODE, EXIT_CODE]
        assert training.checkpoints[-1] == step
        assert max(training.attempts[-1]) == step  # no further step, and none lost
    assert_goes_on_as(calm, training)
    assert [min(attempt) for attempt in training.attempts] == [1, 6, 10]


@pytest.mark.parametrize("name", ["ddp", "zero-2", "zero-3"])
@pytest.mark.parametrize("trouble", ["nan", "wild"])
def test_a_loss_out_of_bounds_stops_all_ranks(scratch: Path, tmp_path: Path, name: str, trouble: str) -> None:
    options = ENGINES[name] | {"stop_above_loss": 10.0}
    training = Training(folder=tmp_path / trouble, options=options, source=trouble)
    assert training.start() == [1, 1]
    for rank in (0, 1):
        last = (training.folder / "attempt-0" / f"errors-{rank}").read_text().strip().splitlines()[-1]
        what = "is not finite" if trouble == "nan" else "above train.stop_above_loss=10"
        assert what in last
        assert "samples: sample-62;" in last  # the third of rank 1 in the eighth batch
        # The weights before a NaN are good, and kept; those before an explosion are under suspicion.
        assert (
            "the state before it is in" if trouble == "nan" else "the last checkpoint from before it is"
        ) in last
        assert ("step-00000007-" if trouble == "nan" else "step-00000006-") in last
    assert training.checkpoints == ([6, 7] if trouble == "nan" else [3, 6])
