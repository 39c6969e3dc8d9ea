"""The cluster that jobs are submitted to: its jobs, their logs and their ends, by Ray's Jobs API."""

import logging
import os
import shlex
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.local_ray import settle_ray
from jobs.submit_door import (
    ADDRESS_VARIABLES,
    check_address,
    lost_connections,
    only_address,
    other_servers,
    refusals,
    token_refusals,
)
from jobs.submit_following import JobState, LostJobError, follow_job
from ldznet.errors import UserError
from pipeline.tracking.redaction import redacted_text

if TYPE_CHECKING:
    from jobs.submit_request import JobRequest

_POLL_S = 0.5
_ANSWER_S = 60.0  # a request without a byte of an answer for so long is lost
_SDK = "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"


class Cluster:
    """A Ray cluster's Jobs API. The token comes from the environment, as Ray's own commands take it.

    Raises:
        UserError: no address, nobody answers there, or the token is refused.
    """

    def __init__(self, address: str | None) -> None:
        if not address and not any(os.environ.get(name) for name in ADDRESS_VARIABLES):
            raise UserError(f"which cluster? Give --address http://HOST:8265, or set {ADDRESS_VARIABLES[0]}")
        if address:
            check_address(address)
        settle_ray()
        self._given = address
        with refusals(address), other_servers(address), only_address(address):
            self._client = _open_client()
            self._client.list_jobs()  # the version, which it has asked for, is told to everybody
        self.address = redacted_text(str(self._client.get_address()))

    def is_this_machine(self) -> bool:
        """Whether all nodes run on this machine, and so see its folders."""
        # There is no public call for it.
        with refusals(self.address):
            answer = self._client._do_request("GET", "/nodes?view=summary")  # noqa: SLF001
            answer.raise_for_status()
        nodes = [node["raylet"] for node in answer.json()["data"]["summary"]]
        alive = [node for node in nodes if node["state"] == "ALIVE"]
        addresses = {node["nodeManagerAddress"] for node in alive}
        names = {node["nodeManagerHostname"] for node in alive}
        return names == {socket.gethostname()} and len(addresses) == 1  # clones of a machine share its name

    def jobs(self) -> dict[str, JobState]:
        """All jobs that were submitted, by id."""
        with refusals(self.address):
            return self._listed()

    def job(self, submission_id: str) -> JobState:
        """One job. `UserError` where there is none of this id."""
        found = self.jobs()
        if submission_id not in found:
            known = ", ".join(sorted(found, key=lambda name: found[name].started)[-3:]) or "none yet"
            raise UserError(f"the cluster knows no job {submission_id!r}; its latest: {known}")
        return found[submission_id]

    def command(self, *words: str) -> str:
        """`ldznet submit` with these words and, where it was given one, the address: to be pasted."""
        where = ["--address", redacted_text(self._given)] if self._given else []
        return shlex.join(["ldznet", "submit", *words, *where])

    def how_to_come_back(self, submission_id: str) -> str:
        """The commands that follow a job again, and that end it."""
        return f"Come back: {self.command('--attach', submission_id)}   End it: {self.command('--stop', submission_id)}"

    def submit(
        self, request: "JobRequest", *, sending: Callable[[str], object] = lambda _: None
    ) -> tuple[str, bool]:
        """Submit a job, or find the identical one that runs: its id, and whether it was submitted now.

        Args:
            request: what to send.
            sending: is told the job's id before it is sent.

        Raises:
            UserError: a job runs that this one must not run beside.
            LostJobError: the connection was lost while it was sent.
        """
        while True:
            there = self.jobs()
            for state in there.values():
                if not state.ended and request.is_identical(state.metadata):
                    return state.submission_id, False
            for state in there.values():
                if not state.ended and (clash := request.clash(state.metadata)):
                    stop = self.command("--stop", state.submission_id)
                    raise UserError(f"{state.submission_id} {clash}: stop it ({stop}), or wait for its end")
            name = request.submission_id(taken=there)
            sending(name)
            if self._send(request, name):
                return name, True

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
            except lost_connections() as error:
                raise LostJobError(
                    f"{self.address} was lost while {name} was being sent: if it took the job, it runs. "
                    f"{self.how_to_come_back(name)}"
                ) from error
        return True

    def stop(self, submission_id: str) -> JobState:
        """End a job; back when it has ended."""
        before = self.job(submission_id)
        if not before.ended:
            with refusals(self.address):
                self._client.stop_job(submission_id)
        while not (state := self.job(submission_id)).ended:
            time.sleep(_POLL_S)
        return state

    def follow(self, submission_id: str, say: Callable[[str], object]) -> JobState:
        """Say a job's log from its beginning, as it is written; back when the job has ended.

        Raises:
            LostJobError: the head does not answer any more, or does not know the job any more.
        """
        give_up = (
            f"{self.address} does not answer any more; {submission_id} may go on. "
            f"{self.how_to_come_back(submission_id)}"
        )
        return follow_job(_ClusterJob(cluster=self, submission_id=submission_id), say, give_up=give_up)

    def _listed(self) -> dict[str, JobState]:
        states = [_state(details) for details in self._client.list_jobs() if details.submission_id]
        return {state.submission_id: state for state in states}


@dataclass(frozen=True, kw_only=True, slots=True)
class _ClusterJob:
    """A job as `follow_job` asks for it."""

    cluster: Cluster
    submission_id: str

    async def parts(self) -> AsyncIterator[str]:
        async for text in self.cluster._client.tail_job_logs(self.submission_id):  # noqa: SLF001 - the same file's
            yield text

    def state(self) -> JobState:
        with token_refusals(self.cluster.address):
            found = self.cluster._listed()  # noqa: SLF001 - likewise
        if self.submission_id not in found:
            raise LostJobError(
                f"{self.cluster.address} knows no job {self.submission_id} any more: its head was started again, and "
                "the job went with the old one. Submit it again: what is committed stays"
            )
        return found[self.submission_id]


def _open_client() -> Any:
    from ray.job_submission import JobSubmissionClient

    for name in _SDK:  # which have set it themselves when they were imported
        logging.getLogger(name).setLevel(logging.WARNING)

    class BoundedClient(JobSubmissionClient):
        """Ray's requests would wait for ever; there is no public way to bound them."""

        def _do_request(self, *words: Any, **options: Any) -> Any:
            return super()._do_request(*words, **({"timeout": _ANSWER_S} | options))

    return BoundedClient()


def _state(details: Any) -> JobState:
    return JobState(
        submission_id=details.submission_id,
        status=str(details.status.value),
        message=details.message or "",
        exit_code=details.driver_exit_code,
        metadata=details.metadata or {},
        started=(details.start_time or 0) / 1000,
    )
