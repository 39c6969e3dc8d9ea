"""Keeps SeaweedFS, MLflow and Ray running until it is told to end: `python -m pipeline.services.keeper FOLDER [NODES]`.

It is the one process that `ldznet services start` leaves behind. It holds a lock in the folder for as long as it lives.
The servers are its children under supervisors and end with it, even where it is killed.
"""

import fcntl
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.services.credentials_file import SERVERS_FILE, write_credentials
from pipeline.services.mlflow_server import MlflowServer
from pipeline.services.process_identity import ProcessIdentity
from pipeline.services.ray_head import RayHead
from pipeline.services.seaweedfs import SeaweedFS

if TYPE_CHECKING:
    from pipeline.services.loopback_server import LoopbackServer

RECORD = "services.json"
CREDENTIALS = "credentials.env"
LOCK = "keeper.lock"
BUCKET = "ldznet"
HELD = 3  # exit code: another keeper has the folder

_MADE_BY = "made by `ldznet services start`"  # the file of credentials begins with it

log = logging.getLogger("pipeline.services.keeper")


def keep(folder: Path, *, ray_nodes: int = 1) -> int:
    """Start the servers, tell where they are, wait for SIGTERM, end them all. The exit code."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: _leave(ended))
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return HELD
        try:
            with _servers(folder, ray_nodes) as (store, mlflow, ray):
                _tell(folder, store, mlflow, ray)
                ended.wait()
        finally:
            forget(folder)
    return 0


def installation_credentials(folder: Path) -> Path | None:
    """A file of credentials there that is not `start`'s own, as `ldznet services credentials` leaves two."""
    for path in (folder / SERVERS_FILE, folder / CREDENTIALS):
        if path.exists() and not _is_ours(path):
            return path
    return None


def forget(folder: Path) -> None:
    """Remove what told of services that have ended. Credentials of others stay."""
    (folder / RECORD).unlink(missing_ok=True)
    if _is_ours(folder / CREDENTIALS):
        (folder / CREDENTIALS).unlink(missing_ok=True)


def _is_ours(credentials: Path) -> bool:
    try:
        return credentials.read_bytes().startswith(f"# {_MADE_BY}".encode())
    except FileNotFoundError:
        return False


def _leave(ended: threading.Event) -> None:
    """Out of the wait, or of a start that is under way; a second signal does not disturb the ending."""
    if not ended.is_set():
        ended.set()
        raise SystemExit(0)


@contextmanager
def _servers(folder: Path, ray_nodes: int) -> Iterator[tuple[SeaweedFS, MlflowServer, RayHead]]:
    started: list[SeaweedFS | LoopbackServer] = []
    try:
        store = SeaweedFS(folder=folder / "seaweedfs", bucket=BUCKET)
        started.append(store.__enter__())
        access = store.environment()
        mlflow = MlflowServer(folder=folder / "mlflow", artifacts=f"s3://{BUCKET}/mlflow", store=access)
        started.append(mlflow.__enter__())
        ray = RayHead(folder=folder / "ray", jobs=access | mlflow.environment(), nodes=ray_nodes)
        started.append(ray.__enter__())
        yield store, mlflow, ray
    finally:
        with ThreadPoolExecutor(len(started) or 1) as pool:  # each may take its whole grace
            list(pool.map(lambda server: server.__exit__(None, None, None), started))


def _tell(folder: Path, store: SeaweedFS, mlflow: MlflowServer, ray: RayHead) -> None:
    credentials = folder / CREDENTIALS
    variables = store.environment() | mlflow.environment() | ray.environment()
    comment = f"{_MADE_BY}; use: set -a; source {credentials}; set +a"
    write_credentials(credentials, variables, comment=comment)
    servers = {
        "S3": (store.endpoint, store.pid, store.log),
        "MLflow": (mlflow.address, mlflow.pid, mlflow.log),
        "Ray": (ray.address, ray.pid, ray.log),
        **{
            f"Ray-node-{number}": (node.address, node.pid, node.log)
            for number, node in enumerate(ray.others, 2)
        },
    }
    record = {
        "keeper": ProcessIdentity.of(os.getpid()).to_json(),
        "servers": {
            name: {"address": address, "log": str(path), "process": ProcessIdentity.of(pid).to_json()}
            for name, (address, pid, path) in servers.items()
        },
    }
    temporary = folder / f".{RECORD}"
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / RECORD)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(levelname)-7s %(message)s", level=logging.INFO)
    for chatty in ("botocore", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    sys.exit(keep(Path(sys.argv[1]), ray_nodes=int(sys.argv[2]) if len(sys.argv) > 2 else 1))
