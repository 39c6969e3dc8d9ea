"""The cluster that jobs are submitted to: its jobs, their logs and their ends, by Ray's Jobs API."""

import asyncio
import logging
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.local_ray import settle_ray
from ldznet.errors import UserError
from pipeline.tracking.redaction import redacted_text

if TYPE_CHECKING:
    from jobs.submit_request import JobRequest

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # as Ray's own commands, in this order
_POLL_S = 0.5
_LOST_S = 120.0  # a head that does not answer for so long is given up
_SDK = "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"


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


class Cluster:
    """A Ray cluster's Jobs API. The token comes from the environment, as Ray's own commands take it.

    Raises:
        UserError: no address, nobody answers there, or the token is refused.
    """

    def __init__(self, address: str | None) -> None:
        if not address and not any(os.environ.get(name) for name in ADDRESS_VARIABLES):
            raise UserError(f"which cluster? Give --address http://HOST:8265, or set {ADDRESS_VARIABLES[0]}")
        settle_ray()
        from ray.job_submission import JobSubmissionClient

        for name in _SDK:
            logging.getLogger(name).setLevel(logging.WARNING)
        with _refusals(address), _only(address):
            self._client = JobSubmissionClient()
            self._client.list_jobs()  # the version, which it has asked for, is told to everybody
        self.address = redacted_text(str(self._client.get_address()))

    def is_this_machine(self) -> bool:
        """Whether all nodes run on this machine, and so see its folders."""
        # There is no public call for it.
        answer = self._client._do_request("GET", "/nodes?view=hostNameList")  # noqa: SLF001
        answer.raise_for_status()
        return set(answer.json()["data"]["hostNameList"]) == {socket.gethostname()}

    def jobs(self) -> dict[str, JobState]:
        """All jobs that were submitted, by id."""
        with _refusals(self.address):
            states = [_state(details) for details in self._client.list_jobs() if details.submission_id]
        return {state.submission_id: state for state in states}

    def job(self, submission_id: str) -> JobState:
        """One job. `UserError` where there is none of this id."""
        found = self.jobs()
        if submission_id not in found:
            known = ", ".join(sorted(found, key=lambda name: found[name].started)[-3:]) or "none yet"
            raise UserError(f"the cluster knows no job {submission_id!r}; its latest: {known}")
        return found[submission_id]

    def submit(self, request: "JobRequest") -> tuple[JobState, bool]:
        """Submit a job, or find the identical one that runs: its state, and whether it was submitted now.

        Raises:
            UserError: a job of the same recipe runs that would do the same work with other code or options.
        """
        while True:
            there = self.jobs()
            for state in there.values():
                if not state.ended and request.is_identical(state.metadata):
                    return state, False
                if not state.ended and request.would_disturb(state.metadata):
                    raise UserError(
                        f"{state.submission_id} runs on this recipe, with other code or options: stop it "
                        f"(ldznet submit --stop {state.submission_id}), or wait for its end"
                    )
            name = request.submission_id(taken=there)
            if self._send(request, name):
                return self.job(name), True

    def _send(self, request: "JobRequest", name: str) -> bool:
        """False where somebody else has taken the name meanwhile."""
        with tempfile.TemporaryDirectory() as scratch:
            archive = Path(scratch) / "working_directory.zip"
            request.package.write(archive)
            variables = {**request.environment, request.ID_VARIABLE: name}
            try:
                self._client.submit_job(
                    entrypoint=request.entrypoint,
                    submission_id=name,
                    runtime_env={"working_dir": str(archive), "env_vars": variables},
                    metadata=dict(request.metadata),
                )
            except RuntimeError as error:
                if "already exists" in str(error):
                    return False
                raise
        return True

    def stop(self, submission_id: str) -> JobState:
        """End a job; back when it has ended."""
        before = self.job(submission_id)
        if not before.ended:
            self._client.stop_job(submission_id)
        return self._ended(submission_id)

    def follow(self, submission_id: str, say: Callable[[str], object]) -> JobState:
        """Say a job's log from its beginning, as it is written; back when the job has ended."""
        log, said = FollowedLog(say), time.monotonic()
        while True:
            count = log.characters
            try:
                asyncio.run(self._tail(submission_id, log))
                return self._ended(submission_id)
            except _lost() as error:
                if log.characters > count:
                    said = time.monotonic()
                if time.monotonic() - said > _LOST_S:
                    raise RuntimeError(f"{self.address} does not answer any more") from error
                time.sleep(_POLL_S)

    async def _tail(self, submission_id: str, log: "FollowedLog") -> None:
        log.rewind()
        async for text in self._client.tail_job_logs(submission_id):
            log.add(text)

    def _ended(self, submission_id: str) -> JobState:
        while not (state := self.job(submission_id)).ended:
            time.sleep(_POLL_S)
        return state


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


def _state(details: Any) -> JobState:
    return JobState(
        submission_id=details.submission_id,
        status=str(details.status.value),
        message=details.message or "",
        exit_code=details.driver_exit_code,
        metadata=details.metadata or {},
        started=(details.start_time or 0) / 1000,
    )


@contextmanager
def _only(address: str | None) -> Iterator[None]:
    """Ray would rather have the environment's address than the one that it is given."""
    if address:
        before = {name: os.environ.pop(name, None) for name in ADDRESS_VARIABLES}
        os.environ[ADDRESS_VARIABLES[0]] = address
        try:
            yield
        finally:
            del os.environ[ADDRESS_VARIABLES[0]]
            os.environ.update({name: value for name, value in before.items() if value is not None})
    else:
        yield


@contextmanager
def _refusals(address: str | None) -> Iterator[None]:
    """What the cluster's door says, as one line."""
    from ray.exceptions import AuthenticationError

    where = redacted_text(address or next(filter(None, map(os.environ.get, ADDRESS_VARIABLES)), ""))
    try:
        yield
    except AuthenticationError as error:
        raise UserError(
            f"{where} refuses the token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the "
            "cluster's own"
        ) from error
    except _lost() as error:
        raise UserError(
            f"no Ray cluster answers at {where}: is it running, and its dashboard's port forwarded to here?"
        ) from error


def _lost() -> tuple[type[Exception], ...]:
    """What is raised where the head is away. Of the log's RuntimeErrors none means anything else."""
    import aiohttp
    import requests

    return (
        ConnectionError,
        requests.exceptions.ConnectionError,
        requests.exceptions.Timeout,
        aiohttp.ClientError,
    )
