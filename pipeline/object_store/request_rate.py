"""How fast a process may send requests, so that all workers together stay under what S3 serves a prefix.

S3 answers at least 3,500 writes and 5,500 reads a second and prefix, and `503 SlowDown` beyond. Where the
number of workers is known each takes its share of that. Where it is not, a process sends as it likes until it
is told to slow down; then it falls to the rate at which it was served, and feels its way up again.
"""

import math
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

S3_PUTS_PER_S = 3500.0  # PUT, COPY, POST and DELETE
S3_GETS_PER_S = 5500.0  # GET, HEAD and listings
USED_SHARE = 0.8  # of what S3 serves: workers choose their moments by chance, which has its peaks

LEAST_PER_S = 0.02
MOST_DECREASE = 0.5
# A second. In proportion, so that the sum over all workers does not depend on how many there are; and more than enough
# to outweigh a store that refuses one in ten whatever the rate.
INCREASE = 0.15
WATCHED_S = 1.0  # over which rates are measured; a rate changes once in it

Chance = Callable[[], float]  # uniform in [0, 1)

_chance = secrets.SystemRandom().random


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestRate:
    """What one process may send to a bucket, in requests a second. Without limits it only heeds SlowDown."""

    puts_per_s: float = math.inf
    gets_per_s: float = math.inf

    @classmethod
    def shared_by(cls, processes: int) -> Self:
        """An equal share of a prefix's rates for each of so many processes."""
        return cls(
            puts_per_s=USED_SHARE * S3_PUTS_PER_S / processes,
            gets_per_s=USED_SHARE * S3_GETS_PER_S / processes,
        )


class Pacer:
    """Gives out the moments at which requests of one kind may go. It neither waits nor reads a clock.

    The moments lie on a grid with one period between them, which begins at a random phase and never moves with
    demand: so workers that all finish at the same instant still send evenly spread. There is no burst.
    """

    def __init__(self, limit: float, *, serves: float, chance: Chance = _chance) -> None:
        """For one process.

        Args:
            limit: requests a second; infinite for no limit.
            serves: what the store serves one client; above it a rate without limit is one again.
            chance: uniform in [0, 1).
        """
        self._limit = limit
        self._serves = serves
        self._chance = chance
        self._rate = limit
        self._tuned_at = -math.inf
        self._next = -math.inf
        self._sent: deque[float] = deque()
        self._throttled: deque[float] = deque()

    @property
    def rate(self) -> float:
        """Requests a second that may be sent now."""
        return self._rate

    def reserve(self, now: float) -> float:
        """The moment, `now` or later, at which the next request may go; it is taken."""
        if self._next == -math.inf:
            self._lay_grid(now)
        self._increase(now)
        if math.isinf(self._rate):
            moment = now
        else:
            period = 1 / self._rate
            passed = max(0, math.ceil((now - self._next) / period))
            moment = self._next + passed * period
            self._next = moment + period
        self._sent.append(moment)
        _forget(self._sent, before=now - WATCHED_S)
        return moment

    def slow_down(self, now: float) -> None:
        """The store has refused a request because there are too many."""
        self._throttled.append(now)
        if now - self._tuned_at < WATCHED_S:
            return
        for times in (self._sent, self._throttled):
            _forget(times, before=now - WATCHED_S)
        sent = max(sum(moment <= now for moment in self._sent), 1)
        served = max(1 - len(self._throttled) / sent, MOST_DECREASE)
        self._rate = max(min(self._rate, sent / WATCHED_S) * served, min(LEAST_PER_S, self._limit))
        self._tuned_at = now
        self._lay_grid(now)

    def _increase(self, now: float) -> None:
        """Once a second after a decrease, until the limit is reached again."""
        seconds = now - self._tuned_at
        if self._rate == self._limit or seconds < WATCHED_S:
            return
        self._rate *= (1 + INCREASE) ** min(seconds, 3600.0)
        self._tuned_at = now
        if self._rate >= min(self._limit, self._serves):
            self._rate = self._limit
        self._lay_grid(now)

    def _lay_grid(self, now: float) -> None:
        self._next = now + (0.0 if math.isinf(self._rate) else self._chance() / self._rate)


def _forget(times: deque[float], *, before: float) -> None:
    while times and times[0] < before:
        times.popleft()


@dataclass(frozen=True, slots=True)
class Pace:
    """The pacers of a process for one bucket, safe for its threads."""

    puts: Pacer
    gets: Pacer
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wait(self, *, reads: bool) -> None:
        """Back when a request of this kind may go."""
        with self._lock:
            now = time.monotonic()
            moment = self._pacer(reads=reads).reserve(now)
        if moment > now:
            time.sleep(moment - now)

    def slow_down(self, *, reads: bool) -> None:
        """The store has asked for fewer requests of this kind."""
        with self._lock:
            self._pacer(reads=reads).slow_down(time.monotonic())

    def _pacer(self, *, reads: bool) -> Pacer:
        return self.gets if reads else self.puts


_paces: dict[tuple[str, RequestRate], Pace] = {}


def pace_of(bucket: str, rate: RequestRate) -> Pace:
    """The process's pace for a bucket: all its stores there share it."""
    made = Pace(
        puts=Pacer(rate.puts_per_s, serves=S3_PUTS_PER_S), gets=Pacer(rate.gets_per_s, serves=S3_GETS_PER_S)
    )
    return _paces.setdefault((bucket, rate), made)


os.register_at_fork(after_in_child=_paces.clear)  # a child's moments must not be its parent's
