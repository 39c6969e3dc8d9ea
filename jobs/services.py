"""An S3 server, MLflow and a Ray head for this machine: start, look at and stop them; no containers needed."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.entry import exit_code_of

if TYPE_CHECKING:
    from pipeline.services.workstation import Workstation

LOOPBACK = "127.0.0.1"
_STOPPED = 3  # of `status` where not all is well, as service managers have it


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments and act."""
    parser = argparse.ArgumentParser(
        prog="ldznet services",
        description=(__doc__ or "").strip(),
        epilog=f"status: exit code 0 where all is well, else {_STOPPED}.",
    )
    parser.add_argument(
        "action",
        choices=("start", "status", "stop", "credentials"),
        help="credentials: start nothing; write FOLDER/credentials.env (for nodes, jobs and people) and "
        "FOLDER/servers.env (for the servers besides), as infra/compose.yaml and docs/cluster.md use them",
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/services"), help="data, logs, credentials (%(default)s)"
    )
    parser.add_argument(
        "--nodes", type=int, default=1, help="Ray nodes on this machine, to try a cluster (%(default)s)"
    )
    parser.add_argument(
        "--host",
        default=LOOPBACK,
        help="where they listen: loopback alone; credentials: where S3 server and MLflow are reached (%(default)s)",
    )
    arguments = parser.parse_args(argv)
    if arguments.nodes < 1:
        parser.error("--nodes: at least the head")
    actions: dict[str, Callable[[Path], int]] = {
        "start": lambda folder: _start(folder, arguments.nodes, arguments.host),
        "status": _status,
        "stop": _stop,
        "credentials": lambda folder: _credentials(folder, arguments.host),
    }
    codes = [0]
    code = exit_code_of(lambda: codes.append(actions[arguments.action](arguments.folder.absolute())))
    return code or codes[-1]


def _start(folder: Path, nodes: int, host: str) -> int:
    from ldznet.errors import UserError
    from pipeline.services import workstation

    if host != LOOPBACK:
        raise UserError(
            f"--host {host}: the services listen on {LOOPBACK} alone, as SeaweedFS's own ports know no passwords and "
            "Ray's traffic is open to read; reach them by `ssh -L`, or see docs/cluster.md for several machines"
        )
    found, now = workstation.start(folder, ray_nodes=nodes)
    _say("started; they go on until `ldznet services stop`" if now else "running already")
    return _show(found)


def _status(folder: Path) -> int:
    from pipeline.services import workstation

    found = workstation.running(folder)
    if found is None:
        _say(f"no services run from {folder}")
        return _STOPPED
    return _show(found)


def _stop(folder: Path) -> int:
    from pipeline.services import workstation

    _say("stopped; the data stays" if workstation.stop(folder) else f"no services run from {folder}")
    return 0


def _credentials(folder: Path, host: str) -> int:
    from ldznet.errors import UserError
    from pipeline.services.credentials_file import SERVERS_FILE, new_credentials, write_credentials
    from pipeline.services.keeper import CREDENTIALS

    made = new_credentials(host)
    files = {folder / SERVERS_FILE: made.servers, folder / CREDENTIALS: made.clients}
    for path in files:
        if path.exists():
            raise UserError(f"{path} exists: services that run were given it; remove it when they are down")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path, variables in files.items():
        write_credentials(path, variables, comment="made by `ldznet services credentials`")
        _say(f"wrote {path}, mode 600")
    return 0


def _show(found: "Workstation") -> int:
    from pipeline.services.keeper import BUCKET

    health = found.health()
    rows = [("service", "address", "health", "log")]
    rows += [
        (service.name, service.address, "well" if health[service.name] else "DOWN", str(service.log))
        for service in found.services
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, address, state, log in rows:
        _say(f"  {name:<{widths[0]}}  {address:<{widths[1]}}  {state:<{widths[2]}}  {log}")
    _say(f"bucket s3://{BUCKET}; credentials, mode 600: set -a; source {found.credentials}; set +a")
    return 0 if all(health.values()) else _STOPPED


def _say(line: str) -> None:
    print(line)  # noqa: T201 - the command's result


if __name__ == "__main__":
    sys.exit(main())
