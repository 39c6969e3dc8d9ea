"""Batches of members decoded ahead of the networks, on threads, in order and with bounded memory."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.cache.member import Member
from pipeline.cache.receipt import LeftOut
from pipeline.precompute.preparation import Prepared, members_by_image

Outcome = Prepared | LeftOut
Prepare = Callable[[Sequence[Member]], Iterable[Outcome]]  # members of one photo -> their outcomes


class DecodedBatches:
    """Decodes a rank's batches. A photo is decoded once for all of a batch's phrases about it."""

    def __init__(self, prepare: Prepare, *, threads: int, ahead: int) -> None:
        """Nothing runs yet.

        Args:
            prepare: called on the threads.
            threads: how many.
            ahead: batches that are decoded before they are asked for.
        """
        self._prepare, self._threads, self._ahead = prepare, threads, ahead
        self.waited_s = 0.0  # how long the caller has waited for photos, in all

    def of(self, batches: Iterable[Sequence[Member]]) -> Generator[list[Outcome], None, None]:
        """One outcome a member, in the members' order. What a thread raised is raised at its batch."""
        with ThreadPoolExecutor(self._threads, thread_name_prefix="photos") as pool:
            flying: deque[tuple[Sequence[Member], list[Future[list[Outcome]]]]] = deque()
            try:
                for members in batches:
                    groups = members_by_image(members)
                    flying.append((members, [pool.submit(self._decode, group) for group in groups]))
                    if len(flying) > self._ahead:
                        yield self._collect(*flying.popleft())
                while flying:
                    yield self._collect(*flying.popleft())
            finally:
                for _, futures in flying:
                    for future in futures:
                        future.cancel()

    def _decode(self, members: Sequence[Member]) -> list[Outcome]:
        return list(self._prepare(members))

    def _collect(self, members: Sequence[Member], futures: Sequence[Future[list[Outcome]]]) -> list[Outcome]:
        began = time.perf_counter()
        outcomes = {_key(one): one for future in futures for one in future.result()}
        self.waited_s += time.perf_counter() - began
        return [outcomes[member.key] for member in members]


def _key(one: Outcome) -> str:
    return one.member.key if isinstance(one, Prepared) else one.key
