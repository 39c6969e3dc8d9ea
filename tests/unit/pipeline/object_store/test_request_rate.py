"""Request rates by simulation: a clock of its own, the real pacers and backoff, workers at their most unkind."""

import heapq
import math
import multiprocessing
import pickle
import random
import sys
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from pipeline.object_store.opening import open_store
from pipeline.object_store.request_rate import (
    S3_GETS_PER_S,
    S3_PUTS_PER_S,
    Pacer,
    RequestRate,
    pace_of,
)
from pipeline.object_store.retries import Retries

RETRIES = Retries()


def tell(line: str) -> None:
    """Figures for whoever runs the tests with `-s`."""
    sys.stdout.write(f"{line}\n")


@dataclass
class Prefix:
    """S3 as it counts: so many requests in any second, SlowDown beyond."""

    serves: float
    answered: deque[float] = field(default_factory=deque)
    arrived: list[float] = field(default_factory=list)

    def accepts(self, now: float) -> bool:
        self.arrived.append(now)
        while self.answered and self.answered[0] <= now - 1.0:
            self.answered.popleft()
        if len(self.answered) >= self.serves:
            return False
        self.answered.append(now)
        return True

    def peak(self, since: float = 0.0) -> int:
        """The most requests that arrived in any one second from `since` on."""
        times = [time for time in self.arrived if time >= since]
        window, most = deque[float](), 0
        for time in times:
            window.append(time)
            while window[0] <= time - 1.0:
                window.popleft()
            most = max(most, len(window))
        return most


@dataclass
class Outcome:
    prefix: Prefix
    throttled: int
    done: int
    half_done_s: float
    lasted_s: float


def simulate(
    workers: int, *, serves: float, limit: float, requests: int, seed: int, answer_s: float = 0.03
) -> Outcome:
    """All workers wake at the same instant, every 10 s, with many requests in hand, and send as fast as they may."""
    chance = random.Random(seed).random  # noqa: S311 - no secret hangs on it
    prefix = Prefix(serves)
    pacers = [Pacer(limit, serves=serves, chance=chance) for _ in range(workers)]
    left, tries = [requests] * workers, [0] * workers
    events: list[tuple[float, int, bool]] = []  # when, who, whether its moment has come

    def wish(now: float, worker: int) -> None:
        heapq.heappush(events, (pacers[worker].reserve(now), worker, True))

    for worker in range(workers):
        wish(0.0, worker)
    throttled = done = 0
    now = half_done_s = 0.0
    while events:
        now, worker, moment_has_come = heapq.heappop(events)
        if not moment_has_come:
            wish(now, worker)
        elif prefix.accepts(now):
            done, left[worker], tries[worker] = done + 1, left[worker] - 1, 0
            half_done_s = now if 2 * done <= workers * requests else half_done_s
            if left[worker]:
                half = left[worker] == requests // 2  # all sleep once, to wake together
                heapq.heappush(
                    events, ((math.floor(now / 10) + 1) * 10.0 if half else now + answer_s, worker, False)
                )
        else:
            throttled += 1
            tries[worker] += 1
            pacers[worker].slow_down(now)
            wait = RETRIES.wait_before(tries[worker], chance=chance)
            heapq.heappush(events, (now + answer_s + wait, worker, False))
    return Outcome(prefix=prefix, throttled=throttled, done=done, half_done_s=half_done_s, lasted_s=now)


@pytest.mark.parametrize("kind", ["puts", "gets"])
@pytest.mark.parametrize(
    ("workers", "requests"), [(1, 20_000), (10, 4000), (1000, 60), (10_000, 8), (100_000, 2)]
)
def test_with_their_number_known_workers_stay_under_the_rate(kind, workers, requests):
    share = RequestRate.shared_by(workers)
    serves = S3_PUTS_PER_S if kind == "puts" else S3_GETS_PER_S
    limit = share.puts_per_s if kind == "puts" else share.gets_per_s
    # A few workers keep many requests in flight each, as if they were answered at once.
    answer_s = 0.03 if workers >= 1000 else 0.0
    found = simulate(workers, serves=serves, limit=limit, requests=requests, seed=workers, answer_s=answer_s)
    peak = found.prefix.peak()
    tell(
        f"{workers} workers, {kind}: at most {peak} in any second of {found.lasted_s:.0f} s, {serves:.0f} served"
    )
    assert found.throttled == 0
    assert peak <= serves
    assert found.done == workers * requests
    assert peak > 0.7 * serves  # they do use what is theirs


@pytest.mark.parametrize(("workers", "requests"), [(1000, 100), (10_000, 12), (100_000, 2)])
def test_with_their_number_unknown_workers_are_refused_at_times_but_all_is_done(workers, requests):
    found = simulate(workers, serves=S3_PUTS_PER_S, limit=math.inf, requests=requests, seed=workers)
    first, later = found.prefix.peak(), found.prefix.peak(since=found.half_done_s)
    needed_s = workers * requests / S3_PUTS_PER_S
    tell(
        f"{workers} workers that do not know of one another: {first} in the first second, at most {later} in any "
        f"after half of the work, {found.throttled / found.done:.2f} SlowDowns a request, {found.lasted_s:.0f} s "
        f"for {needed_s:.0f} s of work"
    )
    assert found.done == workers * requests  # all go through in the end
    assert later < first
    assert found.throttled < 4 * found.done
    assert found.lasted_s < 3 * needed_s


def test_moments_lie_on_a_grid_that_demand_does_not_move():
    pacer = Pacer(0.5, serves=100, chance=lambda: 0.25)
    assert [pacer.reserve(10.0) for _ in range(3)] == [10.5, 12.5, 14.5]
    assert pacer.reserve(14.6) == 16.5
    assert pacer.reserve(99.9) == 100.5  # not at once, though it was idle: others were as well


def test_without_a_limit_nothing_waits_until_the_store_asks_for_it():
    pacer = Pacer(math.inf, serves=3500, chance=lambda: 0.5)
    assert [pacer.reserve(now / 100) for now in range(100)] == [now / 100 for now in range(100)]
    pacer.slow_down(1.0)  # one of a hundred
    assert pacer.rate == pytest.approx(99, rel=0.02)
    for _ in range(60):
        pacer.slow_down(1.5)  # the same second
    assert pacer.rate == pytest.approx(99, rel=0.02)
    moments = [pacer.reserve(1.5) for _ in range(20)]
    assert min(after - before for before, after in pairwise(moments)) > 1 / 101
    pacer.slow_down(2.01)  # most were refused: half, and no less at once
    assert pacer.rate < 50


def test_after_a_throttling_the_rate_comes_back_and_goes_no_further_than_its_limit():
    pacer = Pacer(10.0, serves=3500, chance=lambda: 0.5)
    now, rates = 0.0, []
    for number in range(300):
        now = max(now, pacer.reserve(now))
        if number == 100:
            for _ in range(9):
                pacer.slow_down(now - 1.5)
                pacer.slow_down(now)
        rates.append(pacer.rate)
    assert rates[99] == 10.0
    assert rates[101] < 9.5
    assert rates == [*rates[:101], *sorted(rates[101:])]
    assert rates[-1] == 10.0


def test_a_store_that_refuses_one_in_ten_whatever_the_rate_is_not_taken_for_a_slow_one():
    chance = random.Random(5).random  # noqa: S311 - no secret hangs on it
    pacer = Pacer(math.inf, serves=3500, chance=chance)
    now, sent = 0.0, 0
    while now < 300:
        now = max(now + 0.01, pacer.reserve(now))  # one after the other: at most 100 a second
        sent += 1
        if chance() < 0.1:
            pacer.slow_down(now)
    assert sent > 0.5 * 300 * 100


def test_a_rate_falls_no_lower_than_still_ends():
    pacer = Pacer(math.inf, serves=3500)
    for second in range(100):
        pacer.reserve(float(2 * second))
        pacer.slow_down(2.0 * second + 1)
    assert pacer.rate >= 0.02


def test_a_share_is_told_when_the_store_is_opened():
    assert open_store("s3://bucket/a").rate == RequestRate()
    store = open_store("s3://bucket/a", sharing=1000)
    assert store.rate == RequestRate(puts_per_s=2.8, gets_per_s=4.4)
    assert pickle.loads(pickle.dumps(store)) == store


def test_stores_of_a_process_share_the_pace_of_a_bucket():
    rate = RequestRate.shared_by(10)
    assert pace_of("bucket", rate) is pace_of("bucket", rate)
    assert pace_of("bucket", rate) is not pace_of("other", rate)


def _phase(answers):
    answers.put(pace_of("bucket", RequestRate.shared_by(10**6)).puts.reserve(0.0))


def test_forked_workers_have_moments_of_their_own():
    rate = RequestRate.shared_by(10**6)
    own = pace_of("bucket", rate).puts.reserve(0.0)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    children = [context.Process(target=_phase, args=(answers,)) for _ in range(3)]
    for child in children:
        child.start()
    phases = {answers.get(timeout=60) for _ in children}
    for child in children:
        child.join()
    assert len(phases | {own}) == 4
