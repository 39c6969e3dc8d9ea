"""Batches from photos: the order, the draws and the numbers of the cache, without a cache."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from ldznet.frozen_ldm import FrozenLDM
from pipeline.cache.member import Member
from pipeline.cache.receipt import LeftOut
from pipeline.loading.batch import Batch
from pipeline.loading.sample_order import PADDING, Position, SampleOrder
from pipeline.online.assembly import assemble, blank_row
from pipeline.online.decoding import DecodedBatches, Outcome
from pipeline.online.flip import flip_half
from pipeline.online.frozen_stream import FrozenStream
from pipeline.online.left_out import LeftOutCount
from pipeline.online.samples import OnlineSamples
from pipeline.precompute.preparation import Prepared, prepare_image


class OnlineSource:
    """One rank's batches, as `CacheLoader` gives them, computed when they are asked for.

    Photos are decoded ahead on threads; the frozen networks run in the caller's thread, on their device, where the
    batch's inputs then are. A sample whose data is faulty, or whose view misses the phrase, weighs nothing.
    """

    def __init__(
        self,
        samples: OnlineSamples,
        *,
        ldm: Callable[[], FrozenLDM],
        order: SampleOrder,
        blocks: Sequence[int],
        left_out: LeftOutCount,
        rank: int = 0,
        ranks: int = 1,
        flip: bool = False,
        threads: int = 8,
        batches_ahead: int = 4,
    ) -> None:
        """Nothing is loaded or decoded yet.

        Args:
            samples: of the set.
            ldm: gives the frozen LDM, at the first batch.
            order: over the samples' shards.
            blocks: whose features the network takes.
            left_out: counts samples without usable data.
            rank: whose share.
            ranks: among so many.
            flip: half of the views the other way round.
            threads: that decode.
            batches_ahead: decoded before they are asked for.
        """
        self._samples, self._ldm, self._order = samples, ldm, order
        self._blocks, self._left_out = tuple(blocks), left_out
        self._rank, self._ranks = rank, ranks
        self._flip = flip
        self._decoded = DecodedBatches(self._prepare, threads=threads, ahead=batches_ahead)

    def __len__(self) -> int:
        """Global batches in an epoch, equal on every rank."""
        return len(self._order)

    @property
    def waited_s(self) -> float:
        """Seconds in which the networks had nothing to do, for photos were not decoded yet."""
        return self._decoded.waited_s

    def epoch(self, position: Position) -> Iterator[Batch]:
        """The rest of an epoch from a position.

        Raises:
            UserError: too many samples are faulty, or a photo has changed since it was listed.
        """
        self._left_out.begin()
        stream = FrozenStream(self._ldm(), features=self._samples.spec.features, blocks=self._blocks)
        shares = list(self._order.shares(position, rank=self._rank, ranks=self._ranks))
        members = (self._members(share, epoch=position.epoch) for share in shares)
        waiting: deque[list[Outcome]] = deque()  # batches whose passes are not all run
        with closing(self._decoded.of(members)) as decoded:
            for outcomes in decoded:
                for one in outcomes:
                    if isinstance(one, LeftOut):
                        self._left_out.note(one)
                stream.push(_usable(outcomes))
                waiting.append(outcomes)
                while waiting and stream.ready >= len(_usable(waiting[0])):
                    yield self._batch(waiting.popleft(), stream, size=len(shares[0]))
        stream.flush()
        while waiting:
            yield self._batch(waiting.popleft(), stream, size=len(shares[0]))
        self._left_out.end(epoch=position.epoch)

    def _members(self, share: NDArray[np.int64], *, epoch: int) -> Sequence[Member]:
        return self._samples.members(share[share != PADDING], epoch=epoch)

    def _prepare(self, members: Sequence[Member]) -> Iterator[Outcome]:
        for one in prepare_image(self._samples.spec, members, self._samples.read):
            if self._flip and isinstance(one, Prepared):
                yield flip_half(one, seed=self._samples.spec.features.seed)
            else:
                yield one

    def _batch(self, outcomes: Sequence[Outcome], stream: FrozenStream, *, size: int) -> Batch:
        return assemble(
            outcomes,
            iter(stream.take(len(_usable(outcomes)))),
            size=size,
            side=self._side,
            blank=blank_row(self._ldm(), side=self._side, blocks=self._blocks),
            with_images=self._samples.spec.features.keep_images,
        )

    @property
    def _side(self) -> int:
        return self._samples.spec.policy.view.size


def _usable(outcomes: Sequence[Outcome]) -> list[Prepared]:
    return [one for one in outcomes if isinstance(one, Prepared)]
