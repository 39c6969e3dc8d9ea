"""Samples without usable data, met while training: they weigh nothing, are counted, and too many end the run."""

import logging

from ldznet.errors import UserError
from pipeline.cache.receipt import LeftOut
from pipeline.training import ranks

logger = logging.getLogger(__name__)


class LeftOutCount:
    """Counts what one rank leaves out of a set. Failed: faulty data. Filtered: the view misses the phrase."""

    def __init__(self, *, set_name: str, samples: int, most_failed: float) -> None:
        """Nothing counted yet.

        Args:
            set_name: for messages.
            samples: of the whole set.
            most_failed: share of them that may be faulty.
        """
        self._set_name, self._samples, self._most_failed = set_name, samples, most_failed
        self._told: set[str] = set()
        self.begin()

    def begin(self) -> None:
        """A new epoch."""
        self._failed: dict[str, LeftOut] = {}
        self._filtered = 0

    def note(self, one: LeftOut) -> None:
        """Count a sample; name a faulty one, once.

        Raises:
            UserError: this rank alone has met more faulty ones than the whole set may have.
        """
        if one.why == "filtered":
            self._filtered += 1
            return
        self._failed[one.key] = one
        named = f"{one.image} {one.phrase!r} {one.reason}"
        if named not in self._told:  # it fails in each epoch's draw again
            self._told.add(named)
            logger.warning(
                "left out of %s: %s, phrase %r: %s", self._set_name, one.image, one.phrase, one.reason
            )
        self._check(len(self._failed))

    def end(self, *, epoch: int) -> None:
        """The epoch is through on all ranks: tell the sum. Collective.

        Raises:
            UserError: the ranks together have met too many faulty ones.
        """
        figures = ranks.add_figures({"failed": len(self._failed), "filtered": self._filtered})
        if any(figures.values()) and ranks.rank() == 0:
            logger.info(
                "%s, epoch %d: of %d samples %d were faulty and %d not in their view; they weighed nothing",
                self._set_name, epoch, self._samples, figures["failed"], figures["filtered"],
            )  # fmt: skip
        self._check(int(figures["failed"]))

    def _check(self, failed: int) -> None:
        if not failed or failed <= self._most_failed * self._samples:
            return
        first = next(iter(self._failed.values()), None)
        named = (
            "" if first is None else f"; the first: {first.image}, phrase {first.phrase!r}: {first.reason}"
        )
        raise UserError(
            f"{failed} of {self._samples} samples of the set {self._set_name!r} are faulty, more than "
            f"cache.max_failed_share={self._most_failed} allows{named}"
        )
