"""Starts, looks at and stops the three services of a workstation, which one keeper process runs (see `keeper`)."""

import fcntl
import json
import logging
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldznet.errors import UserError
from pipeline.services.child import last_lines
from pipeline.services.credentials_file import read_credentials
from pipeline.services.keeper import (
    BUCKET,
    CREDENTIALS,
    HELD,
    LOCK,
    RECORD,
    forget,
    installation_credentials,
)
from pipeline.services.mlflow_server import mlflow_answers
from pipeline.services.process_identity import ProcessIdentity
from pipeline.services.ray_head import ray_answers

log = logging.getLogger(__name__)

_POLL_S = 0.2
_GRACE_S = 40.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """One of the services, as it was started."""

    name: str
    address: str
    log: Path
    process: ProcessIdentity


@dataclass(frozen=True, kw_only=True, slots=True)
class Workstation:
    """The services that run from a folder."""

    folder: Path
    keeper: ProcessIdentity
    services: tuple[Service, ...]

    @property
    def credentials(self) -> Path:
        """The file to source."""
        return self.folder / CREDENTIALS

    def health(self) -> dict[str, bool]:
        """Whether each service lets in who has the credentials."""
        known = read_credentials(self.credentials)
        address = {service.name: service.address for service in self.services}
        return {
            **{service.name: service.process.is_alive() for service in self.services},
            "S3": _s3_answers(known),
            "MLflow": mlflow_answers(address["MLflow"], password=known["MLFLOW_TRACKING_PASSWORD"]),
            "Ray": ray_answers(address["Ray"], token=known["RAY_AUTH_TOKEN"]),
        }


def running(folder: Path) -> Workstation | None:
    """The services of a folder, None where they do not run."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    found = Workstation(
        folder=folder,
        keeper=ProcessIdentity(**record["keeper"]),
        services=tuple(_service(name, facts) for name, facts in record["servers"].items()),
    )
    return found if found.keeper.is_alive() else None


def start(folder: Path, *, ray_nodes: int = 1) -> tuple[Workstation, bool]:
    """The services of a folder, started unless they run; whether they were started now.

    They go on when the shell ends. Back when all let in who has the credentials. `ray_nodes` counts the head;
    several share this machine, to try what happens between nodes.

    Raises:
        UserError: the folder holds an installation's credentials, which these services' own would replace.
        RuntimeError: they do not start; the message ends with the last lines of the keeper's log.
    """
    if sys.platform != "linux":
        raise UserError("these services run on Linux alone: use infra/compose.yaml")
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = running(folder)
    if found is not None:
        return found, False
    others = installation_credentials(folder)
    if others is not None:
        raise UserError(
            f"{others} is of an installation (`ldznet services credentials`): start these services from a folder of "
            "their own, by --folder"
        )
    output = folder / "keeper.log"
    while True:
        keeper = _start_keeper(folder, output, ray_nodes)
        try:
            found = _wait(folder, keeper)
        except BaseException:
            keeper.terminate()
            keeper.wait()
            raise
        if found is not None:
            return found, found.keeper.pid == keeper.pid
        if keeper.returncode != HELD:
            raise RuntimeError(f"the services did not start; the end of {output}:\n{last_lines(output)}")
        time.sleep(_POLL_S)  # another start had the folder, and failed or was stopped


def stop(folder: Path) -> bool:
    """End the services of a folder, and nothing else; back when they are gone. False where none ran."""
    folder = folder.absolute()
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    ended = ProcessIdentity(**record["keeper"]).end(grace_s=_GRACE_S)
    for facts in record[
        "servers"
    ].values():  # gone with the keeper; a keeper that was killed leaves them a moment
        process = ProcessIdentity(**facts["process"])
        while process.is_alive():
            time.sleep(_POLL_S)
    forget(folder)
    return ended


def _service(name: str, facts: dict[str, Any]) -> Service:
    process = ProcessIdentity(**facts["process"])
    return Service(name=name, address=facts["address"], log=Path(facts["log"]), process=process)


def _start_keeper(folder: Path, output: Path, ray_nodes: int) -> subprocess.Popen[bytes]:
    with output.open("ab") as log_file:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.services.keeper", str(folder), str(ray_nodes)],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait(folder: Path, keeper: subprocess.Popen[bytes]) -> Workstation | None:
    """The services once they are told of; None where nobody starts them any more."""
    while True:
        found = running(folder)
        if found is not None:
            return found
        if keeper.poll() is not None and not (keeper.returncode == HELD and _is_held(folder)):
            return None
        time.sleep(_POLL_S)


def _is_held(folder: Path) -> bool:
    with (folder / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _s3_answers(known: dict[str, str]) -> bool:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    quick = Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1})
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=known["AWS_ENDPOINT_URL"],
        aws_access_key_id=known["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=known["AWS_SECRET_ACCESS_KEY"],
        region_name=known["AWS_DEFAULT_REGION"],
        config=quick,
    )
    try:
        client.head_bucket(Bucket=BUCKET)
    except (BotoCoreError, ClientError):
        return False
    return True
