"""A file of credentials that only its owner may read: `KEY=VALUE` lines, for a shell and for a container engine."""

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from ldznet.errors import UserError
from pipeline.services.mlflow_server import USER
from pipeline.services.seaweedfs import REGION

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
        UserError: others than its owner may read it, or it is no such file.
    """
    if path.stat().st_mode & 0o077:
        raise UserError(f"{path} can be read by others: chmod 600 it, and have its credentials made anew")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    if any("=" not in line for line in lines):
        raise UserError(f"{path} holds no KEY=VALUE lines: have it made anew")
    return dict(line.split("=", 1) for line in lines)


def new_compose_credentials() -> dict[str, str]:
    """Fresh credentials for infra/compose.yaml, with the addresses that its services have on this machine."""
    password = secrets.token_urlsafe(30)
    return {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:8333",
        "AWS_ACCESS_KEY_ID": secrets.token_hex(10).upper(),
        "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(30),
        "AWS_DEFAULT_REGION": REGION,
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
        "MLFLOW_TRACKING_USERNAME": USER,
        "MLFLOW_TRACKING_PASSWORD": password,
        "MLFLOW_AUTH_ADMIN_USERNAME": USER,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
        "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
