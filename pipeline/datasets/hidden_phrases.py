"""A data set whose phrases are hidden: what a system can segment that is not told what to look for."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.datasets.rephrased import Rephrased
from pipeline.datasets.sample import Sample

HIDDEN = "thing"  # what every phrase says instead


@dataclass(frozen=True, kw_only=True, slots=True)
class HiddenPhrases(Rephrased):
    """Every sample with one and the same phrase that tells nothing; images and masks stay."""

    done = "hidden"

    def samples(self, split: str) -> Iterator[Sample]:
        """The split's samples in their order."""
        for sample in self.whole.samples(split):
            yield replace(sample, phrase=HIDDEN)
