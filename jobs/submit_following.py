"""Following a job to its end through connections that are lost on the way: its log said once, its end told."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from jobs.submit_door import lost_connections
from ldznet.errors import FinalError
from pipeline.object_store.retries import Retries

_LOST_S = 120.0  # a head that does not answer for so long is given up
_SILENT_S = 300.0  # after it a log is asked for anew: a connection may be lost without anybody telling
_LOG_TRIES = 3  # to read the log of a job that has ended
_WAITS = Retries(first_wait_s=1.0, longest_wait_s=10.0)
_LONGEST_AT = 5  # the try from which on waits are longest


class LostJobError(FinalError):
    """The cluster, or the job with it, is lost to who follows it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobState:
    """A job as the cluster tells it."""

    submission_id: str
    status: str  # PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED
    message: str
    exit_code: int | None
    metadata: dict[str, str]
    started: float  # Unix time

    @property
    def ended(self) -> bool:
        """Whether it will not run any more."""
        return self.status in {"SUCCEEDED", "FAILED", "STOPPED"}


class Followed(Protocol):
    """A job that is followed. Both calls raise one of `lost_connections`, or a RuntimeError, where the head is away."""

    def parts(self) -> AsyncIterator[str]:
        """Its log from the beginning, to the end of the job or of the connection."""
        ...

    def state(self) -> JobState:
        """What the cluster tells of it. `LostJobError` where it does not know it any more."""
        ...


def follow_job(job: Followed, say: Callable[[str], object], *, give_up: str) -> JobState:
    """Say a job's log as it is written, each part once; back when the job has ended.

    A lost connection is made again, with longer and longer, jittered waits.

    Args:
        job: to follow.
        say: is given the log, part by part.
        give_up: what to tell where the head has not answered for `_LOST_S`.

    Raises:
        LostJobError: the head does not answer any more, or knows no such job.
    """
    log, away_since, tries = FollowedLog(say), None, 0
    ended: list[JobState] = []  # once each time that it was told
    while True:
        count = log.characters
        whole = asyncio.run(_tail(job, log))
        state, error = _asked(job)
        if state is not None and state.ended:
            ended.append(state)
            if whole or len(ended) == _LOG_TRIES:
                return state
        now = time.monotonic()
        away_since = None if state is not None else away_since or now
        if away_since is not None and now - away_since > _LOST_S:
            if ended:  # without the end of its log
                return ended[-1]
            raise LostJobError(give_up) from error
        tries = 1 if log.characters > count else min(tries + 1, _LONGEST_AT)
        time.sleep(_WAITS.wait_before(tries, chance=random.random))


async def _tail(job: Followed, log: "FollowedLog") -> bool:
    """Whether the log ended as a log does, and not as a lost connection."""
    log.rewind()
    parts = job.parts()
    while True:
        try:
            async with asyncio.timeout(_SILENT_S):
                text = await anext(parts)
        except StopAsyncIteration:
            return True
        except _lost():
            return False
        log.add(text)


def _asked(job: Followed) -> tuple[JobState | None, Exception | None]:
    try:
        return job.state(), None
    except _lost() as error:
        return None, error


def _lost() -> tuple[type[Exception], ...]:
    """Ray's RuntimeErrors are a log's connection that closed abnormally, and an answer of another status than 200."""
    return (*lost_connections(), RuntimeError)


class FollowedLog:
    """A log that may be told again from its beginning: each part is said once."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self.characters = 0
        self._place = 0

    def rewind(self) -> None:
        """From here on it is told from its beginning."""
        self._place = 0

    def add(self, text: str) -> None:
        """Take the next part; what was said before is not said again."""
        known = max(self.characters - self._place, 0)
        self._place += len(text)
        self.characters = max(self.characters, self._place)
        if text[known:]:
            self._say(text[known:])
