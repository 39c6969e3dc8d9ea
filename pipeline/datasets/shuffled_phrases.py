"""A data set whose phrases were dealt out anew: what a system that understands phrases must fail on."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ldznet.errors import UserError
from pipeline.datasets.rephrased import Rephrased
from pipeline.datasets.sample import Sample
from pipeline.draws import draw_generator


@dataclass(frozen=True, kw_only=True, slots=True)
class ShuffledPhrases(Rephrased):
    """Every sample with the phrase of another one, never its own; images and masks stay. Lists a split in memory."""

    done = "shuffled"

    seed: int = 0

    def samples(self, split: str) -> Iterator[Sample]:
        """The split's samples in their order.

        Raises:
            UserError: more than half of the samples have one and the same phrase.
        """
        samples = list(self.whole.samples(split))
        phrases = [sample.phrase for sample in samples]
        for sample, other in zip(samples, _dealt(phrases, seed=self.seed, split=split), strict=True):
            yield replace(sample, phrase=phrases[other])


def _dealt(phrases: list[str], *, seed: int, split: str) -> NDArray[np.int64]:
    """A permutation that gives nobody an equal phrase, drawn from (seed, split)."""
    numbers = np.unique(np.array(phrases, dtype=object).astype(str), return_inverse=True)[1].ravel()
    counts = np.bincount(numbers) if len(numbers) else np.zeros(1, np.int64)
    most = int(counts.max())
    if 2 * most > len(phrases):
        raise UserError(
            f"phrases of split {split!r} cannot be shuffled: one phrase makes up {most} of its {len(phrases)} samples"
        )
    shuffled = draw_generator("shuffled phrases", seed, split).permutation(len(phrases))
    # Equal phrases side by side; then everybody takes the one as far on as the commonest phrase has samples.
    grouped = shuffled[np.argsort(numbers[shuffled], kind="stable")]
    dealt = np.empty(len(phrases), np.int64)
    dealt[grouped] = np.roll(grouped, most)
    return dealt
