"""Two or more sides of a comparison, measured in turns in one run."""

import time
from collections.abc import Callable, Mapping
from statistics import median


def take_turns(
    sides: Mapping[str, Callable[[], float]], *, rounds: int, warm_ups: int = 1
) -> dict[str, list[float]]:
    """Every side's figures, round by round; every other round goes in the other order, against drift.

    Args:
        sides: a label and what measures once and gives its figure.
        rounds: figures a side.
        warm_ups: rounds before them that do not count.
    """
    figures: dict[str, list[float]] = {label: [] for label in sides}
    for number in range(warm_ups + rounds):
        for label in sides if number % 2 else reversed(sides):
            figure = sides[label]()
            if number >= warm_ups:
                figures[label].append(figure)
    return figures


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """What measures the seconds of one call."""

    def measure() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return measure


def ratio(figures: Mapping[str, list[float]], above: str, below: str) -> float:
    """Median of one side over the median of another."""
    return median(figures[above]) / median(figures[below])


def spread(figures: Mapping[str, list[float]], above: str, below: str) -> str:
    """The least and the greatest ratio of a round."""
    ratios = sorted(one / other for one, other in zip(figures[above], figures[below], strict=True))
    return f"{ratios[0]:.3g} to {ratios[-1]:.3g}"
