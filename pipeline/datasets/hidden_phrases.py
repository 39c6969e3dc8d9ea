"""A data set whose phrases are hidden: what a system can segment that is not told what to look for."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.datasets.sample import Dataset, Sample
from pipeline.object_store.store import ObjectStore

HIDDEN = "thing"  # what every phrase says instead


@dataclass(frozen=True, kw_only=True, slots=True)
class HiddenPhrases:
    """Every sample with one and the same phrase that tells nothing; images and masks stay."""

    whole: Dataset

    @property
    def name(self) -> str:
        """The data set's name, and what was done to it."""
        return f"{self.whole.name} (phrases hidden)"

    @property
    def store(self) -> ObjectStore:
        """The data set's store."""
        return self.whole.store

    def splits(self) -> tuple[str, ...]:
        """Those of the data set."""
        return self.whole.splits()

    def samples(self, split: str) -> Iterator[Sample]:
        """The split's samples in their order."""
        for sample in self.whole.samples(split):
            yield replace(sample, phrase=HIDDEN)
