"""Trying again what the infrastructure did, with jittered backoff and a bound."""

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_random = secrets.SystemRandom()


@dataclass(frozen=True, kw_only=True, slots=True)
class Retries:
    """How often and how long. The defaults outlive a server that is away for a minute, and end after two."""

    tries: int = 40
    damaged_tries: int = 6  # that end with a damaged body: bytes that are bad at rest stay so
    first_wait_s: float = 0.1  # doubles with each try; the wait is drawn between nothing and this
    longest_wait_s: float = 10.0
    give_up_after_s: float = 120.0  # no try begins later than this after the first

    def waits(self) -> Iterator[int]:
        """The tries' numbers from 0, after a wait before each but the first."""
        begun = time.monotonic()
        for number in range(self.tries):
            if number:
                wait = self.wait_before(number, chance=_random.random)
                if time.monotonic() + wait - begun > self.give_up_after_s:
                    return
                time.sleep(wait)
            yield number

    def wait_before(self, number: int, *, chance: Callable[[], float]) -> float:
        """How long to wait before a try, in seconds, drawn by `chance` in [0, 1)."""
        return chance() * min(self.longest_wait_s, self.first_wait_s * 2 ** (number - 1))
