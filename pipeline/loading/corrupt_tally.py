"""Samples that were skipped because they cannot be read: counted, logged by name, and only so many."""

import logging
from collections.abc import Iterable

from pipeline.cache.sample_reading import CorruptSample, CorruptSampleError

logger = logging.getLogger(__name__)


class CorruptTally:
    """Counts one rank's skipped samples of one epoch."""

    def __init__(self, *, samples: int, most_share: float) -> None:
        """Of `samples` that the rank reads in an epoch, at most this share."""
        self._samples, self._most_share = samples, most_share
        self.skipped: dict[str, CorruptSample] = {}  # by key

    def add(self, found: Iterable[CorruptSample]) -> None:
        """Take in what a batch lacked.

        Raises:
            CorruptSampleError: these are too many.
        """
        for sample in found:
            logger.warning("skipped sample %s of %s: %s", sample.key, sample.object_key, sample.reason)
            self.skipped[sample.key] = sample
        if len(self.skipped) > self._most_share * self._samples:
            first = next(iter(self.skipped.values()))
            raise CorruptSampleError(
                f"{len(self.skipped)} of {self._samples} samples of an epoch cannot be read, more than "
                f"loader.max_corrupt_share={self._most_share} allows; the first: {first.reason}"
            )
