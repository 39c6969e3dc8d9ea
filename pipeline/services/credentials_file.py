"""A file of credentials that only its owner may read: `KEY=VALUE` lines, for a shell and for a container engine."""

import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ldznet.errors import UserError
from pipeline.services.mlflow_server import USER
from pipeline.services.ports import LOOPBACK
from pipeline.services.seaweedfs import REGION

SERVERS_FILE = "servers.env"  # beside the file of credentials: what the servers alone are to know

_HOST = re.compile(r"[A-Za-z0-9.-]+")
_PLAIN = re.compile(r"[A-Za-z0-9_./:@+-]*")  # what a shell and an env_file read alike, without quotes


def write_credentials(path: Path, variables: Mapping[str, str], *, comment: str) -> None:
    """Write the file anew with mode 600; at no moment may anybody else read it."""
    for name, value in variables.items():
        assert _PLAIN.fullmatch(value), f"{name} would need quotes"
    lines = [f"# {comment}", *(f"{name}={value}" for name, value in variables.items())]
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    temporary.replace(path)


def read_credentials(path: Path) -> dict[str, str]:
    """The variables of such a file.

    Raises:
        UserError: it is gone, others than its owner may read it, or it is no such file.
    """
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{path} is gone: stop the services, and start them with credentials made anew"
        ) from None
    if mode & 0o077:
        raise UserError(f"{path} can be read by others: chmod 600 it, and have its credentials made anew")
    lines = [line for line in text.splitlines() if line and line[0] != "#"]
    if any("=" not in line for line in lines):
        raise UserError(f"{path} holds no KEY=VALUE lines: have it made anew")
    return dict(line.split("=", 1) for line in lines)


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """Of one installation.

    Attributes:
        clients: for Ray's nodes, the jobs on them and people.
        servers: what S3 server and MLflow need besides, and nobody else.
    """

    clients: dict[str, str]
    servers: dict[str, str]


def new_credentials(host: str = LOOPBACK) -> Credentials:
    """Fresh ones for S3 server, MLflow and Ray outside `ldznet services`, such as infra/compose.yaml.

    Args:
        host: where S3 server and MLflow are reached. Ray's dashboard is on the head's loopback address.

    Raises:
        UserError: that is no host.
    """
    if not _HOST.fullmatch(host):
        raise UserError(f"--host {host}: give a name or an IPv4 address")
    password = secrets.token_urlsafe(30)
    clients = {
        "AWS_ENDPOINT_URL": f"http://{host}:8333",
        "AWS_ACCESS_KEY_ID": secrets.token_hex(10).upper(),
        "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(30),
        "AWS_DEFAULT_REGION": REGION,
        "MLFLOW_TRACKING_URI": f"http://{host}:5000",
        "MLFLOW_TRACKING_USERNAME": USER,
        "MLFLOW_TRACKING_PASSWORD": password,
        "RAY_API_SERVER_ADDRESS": f"http://{LOOPBACK}:8265",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    servers = {
        "MLFLOW_AUTH_ADMIN_USERNAME": USER,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
        # Without it the S3 gateway's gRPC port takes new users from whoever asks.
        "WEED_JWT_FILER_SIGNING_KEY": secrets.token_urlsafe(30),
    }
    return Credentials(clients=clients, servers=servers)
