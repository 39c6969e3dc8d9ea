"""Differences of an experiment's systems: pair by pair, over the seeds that both have."""

from dataclasses import replace

import pytest
import torch

from ldznet.scores import SegmentationScores
from pipeline.evaluation.run import Evaluation
from pipeline.results.differences import experiment_differences
from pipeline.results.experiments import EXPERIMENTS, Cell, Experiment

MASKS = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.4


def counts(lift: float, seed: int) -> SegmentationScores:
    noise = torch.randn(MASKS.shape, generator=torch.Generator().manual_seed(seed))
    scores = SegmentationScores()
    scores.update(noise + MASKS * lift - lift / 2, MASKS)
    return scores


def experiment(*cells: tuple[str, int]) -> Experiment:
    return Experiment(
        name="small",
        cells=tuple(Cell(system=system, overrides=(), seed=seed) for system, seed in cells),
        sets=("test",),
        steps=1,
        pairs=(("good", "bad"), ("good", "never trained")),
    )


def evaluation(asked: Experiment) -> Evaluation:
    lifts = {"good": 3.0, "bad": 1.0, "other": 2.0}
    return Evaluation(
        counts={(cell.label, "test"): counts(lifts[cell.system], cell.seed) for cell in asked.cells},
        thresholds={cell.label: 0.5 for cell in asked.cells},
    )


def test_seeds_that_both_have_are_averaged() -> None:
    asked = experiment(("good", 1), ("bad", 1), ("good", 2), ("bad", 2), ("good", 3), ("other", 3))
    (row,) = experiment_differences(asked, evaluation(asked))
    assert (row.set_name, row.first, row.second, row.seeds) == ("test", "good", "bad", 2)
    by_seed = [
        next(iter(experiment_differences(one, evaluation(one))))
        for one in (experiment(("good", seed), ("bad", seed)) for seed in (1, 2))
    ]
    assert row.ap.value == pytest.approx(sum(one.ap.value for one in by_seed) / 2)
    assert row.ap.low < row.ap.value - 0.01 and by_seed[0].ap.low > 0


def test_a_pair_without_a_seed_in_common_has_no_row() -> None:
    asked = experiment(("good", 1), ("bad", 2))
    assert list(experiment_differences(asked, evaluation(asked))) == []


def test_a_network_is_told_from_itself_with_others_features() -> None:
    asked = replace(
        experiment(("good", 1), ("bad", 1)), controls=("good",), pairs=(("good", "good, others' features"),)
    )
    (cell, _) = asked.cells
    (own, control) = asked.scored_as(cell, "folder")
    assert (own[0], own[1].features) == ("good", "own")
    assert (control[0], control[1].features) == ("good, others' features", "others")
    scored = evaluation(asked)
    assert own[1].name in scored.thresholds and control[1].name is not None
    scored.counts[control[1].name, "test"] = counts(1.0, 1)
    (row,) = experiment_differences(asked, scored)
    assert (row.second, row.seeds) == ("good, others' features", 1)
    assert row.ap.low > 0
    assert asked.makes("good, others' features", seed=1, set_name="test")
    assert not asked.makes("bad, others' features", seed=1, set_name="test")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_pairs_name_systems_of_the_experiment(name: str) -> None:
    systems = {system for system, _ in EXPERIMENTS[name].labels}
    assert {system for pair in EXPERIMENTS[name].pairs for system in pair} <= systems
