"""An MLflow server on this machine: runs in SQLite, artifacts through it to an object store, one user."""

import base64
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.services.loopback_server import LoopbackServer, http_status
from pipeline.services.ports import LOOPBACK, free_ports

USER = "ldznet"

# The password is checked against a slow hash; once a minute and client is enough.
_ACCESS = """\
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = {database}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""


class MlflowServer(LoopbackServer):
    """MLflow with a password made for this run; see `LoopbackServer`.

    Whoever may write to MLflow can register a model, and with it code that others will run: so a password, on
    loopback too. Artifacts go through the server, so that clients need the store's credentials for none.
    """

    name = "mlflow"

    def __init__(self, *, folder: Path, artifacts: str, store: Mapping[str, str]) -> None:
        """`artifacts` is a folder or s3:// URL; `store` the variables by which the server finds and may use it."""
        super().__init__(folder=folder)
        self._artifacts = artifacts
        self._store = dict(store)
        self._password = secrets.token_urlsafe(30)
        self._port = 0

    @property
    def address(self) -> str:
        """Where the web page and the API are."""
        return f"http://{LOOPBACK}:{self._port}"

    def environment(self) -> dict[str, str]:
        """The variables by which MLflow's clients find the server. They hold the password."""
        return {
            "MLFLOW_TRACKING_URI": self.address,
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": self._password,
        }

    def secrets(self) -> Sequence[str]:
        """The password."""
        return (self._password,)

    def choose_ports(self) -> None:
        """One port; and a list of users of its own, as the password is another one each time."""
        (self._port,) = free_ports(1)
        self._users.unlink(missing_ok=True)
        self._access.write_text(_ACCESS.format(database=f"sqlite:///{self._users}"), encoding="utf-8")

    def command(self) -> Sequence[str | Path]:
        """One worker process, which answers many requests at once: four take 1.8 GB."""
        return [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            f"--host={LOOPBACK}",
            f"--port={self._port}",
            f"--backend-store-uri=sqlite:///{self.folder / 'mlflow.db'}",
            f"--artifacts-destination={self._artifacts}",
            "--app-name=basic-auth",
            f"--allowed-hosts={LOOPBACK}:{self._port},localhost:{self._port}",
            "--workers=1",
        ]

    def servers_environment(self) -> Mapping[str, str]:
        """Ours without another MLflow's or store's, and what it needs to be the only one to know its user."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "AWS_"))}
        return (
            kept
            | self._store
            | {
                "MLFLOW_AUTH_CONFIG_PATH": str(self._access),
                "MLFLOW_AUTH_ADMIN_USERNAME": USER,
                "MLFLOW_AUTH_ADMIN_PASSWORD": self._password,
                "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "DO_NOT_TRACK": "true",
            }
        )

    def answers(self) -> bool:
        """Whether it gives its user the list of experiments."""
        return mlflow_answers(self.address, password=self._password)

    @property
    def _access(self) -> Path:
        return self.folder / "access.ini"

    @property
    def _users(self) -> Path:
        return self.folder / "users.db"


def mlflow_answers(address: str, *, password: str, user: str = USER) -> bool:
    """Whether an MLflow server lets a user in."""
    word = base64.b64encode(f"{user}:{password}".encode()).decode()
    path = "/api/2.0/mlflow/experiments/search?max_results=1"
    return http_status(address, path, {"Authorization": f"Basic {word}"}) == 200
