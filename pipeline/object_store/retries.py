"""Trying again what the infrastructure did, with jittered backoff and a bound."""

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass

_random = secrets.SystemRandom()


@dataclass(frozen=True, kw_only=True, slots=True)
class Retries:
    """How often and how long. The defaults outlive a restart of the server and end within minutes."""

    tries: int = 10
    first_wait_s: float = 0.1  # doubles with each try; the wait is drawn between nothing and this
    longest_wait_s: float = 10.0
    give_up_after_s: float = 120.0  # no try begins later than this after the first

    def waits(self) -> Iterator[int]:
        """The tries' numbers from 0, after a wait before each but the first."""
        begun = time.monotonic()
        for number in range(self.tries):
            if number:
                wait = _random.uniform(0, min(self.longest_wait_s, self.first_wait_s * 2 ** (number - 1)))
                if time.monotonic() + wait - begun > self.give_up_after_s:
                    return
                time.sleep(wait)
            yield number
