"""How far the systems of an experiment are ahead of each other, pair by pair, on the same phrases."""

from collections.abc import Iterator

from ldznet.score_differences import Differences, score_differences
from ldznet.scores import FIXED_THRESHOLD
from pipeline.evaluation.run import Evaluation
from pipeline.results.experiments import Experiment
from pipeline.results.record import DifferenceRow
from pipeline.results.seeds import difference_over_seeds


def experiment_differences(experiment: Experiment, scored: Evaluation) -> Iterator[DifferenceRow]:
    """A row a set and pair of which at least one seed was trained in both systems.

    Args:
        experiment: whose pairs.
        scored: counts of its systems, under their labels.
    """
    labels = experiment.labels
    seeds = sorted({cell.seed for cell in experiment.cells})
    for set_name in experiment.sets:
        for first, second in experiment.pairs:
            paired = [
                (labels[first, seed], labels[second, seed])
                for seed in seeds
                if (first, seed) in labels and (second, seed) in labels
            ]
            if not paired:
                continue
            by_seed = [_differences(scored, pair, set_name) for pair in paired]
            yield DifferenceRow(
                set_name=set_name,
                first=first,
                second=second,
                seeds=len(by_seed),
                miou=difference_over_seeds([one.miou for one in by_seed]),
                ap=difference_over_seeds([one.ap for one in by_seed]),
            )


def differences_between(scored: Evaluation, pair: tuple[str, str], set_name: str) -> DifferenceRow:
    """The row of two systems that have no seeds, by their names in the evaluation."""
    found = _differences(scored, pair, set_name)
    return DifferenceRow(
        set_name=set_name, first=pair[0], second=pair[1], seeds=1, miou=found.miou, ap=found.ap
    )


def _differences(scored: Evaluation, pair: tuple[str, str], set_name: str) -> Differences:
    first, second = pair
    return score_differences(
        scored.counts[first, set_name],
        scored.counts[second, set_name],
        thresholds=(
            scored.thresholds.get(first, FIXED_THRESHOLD),
            scored.thresholds.get(second, FIXED_THRESHOLD),
        ),
    )
