"""What data sets have in common whose phrases are others than their own: images and masks stay."""

from dataclasses import dataclass
from typing import ClassVar

from pipeline.datasets.sample import Dataset
from pipeline.object_store.store import ObjectStore


@dataclass(frozen=True, kw_only=True, slots=True)
class Rephrased:
    """All of a data set but its samples' phrases."""

    done: ClassVar[str]  # to the phrases, for the name

    whole: Dataset

    @property
    def name(self) -> str:
        """The data set's name, and what was done to it."""
        return f"{self.whole.name} (phrases {self.done})"

    @property
    def store(self) -> ObjectStore:
        """The data set's store."""
        return self.whole.store

    def splits(self) -> tuple[str, ...]:
        """Those of the data set."""
        return self.whole.splits()
