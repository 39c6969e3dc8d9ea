"""MLflow's client, imported where it is used, without its chatter, and the ways in which it fails."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"
# Only where the user has not chosen: a training must not wait minutes for a server that is away, and a run's
# address is printed by us or not at all.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def open_client(uri: str) -> "MlflowClient":
    """A client of the store at `uri`. The folder of an SQLite file is made."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    database = sqlite_path(uri)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def sqlite_path(uri: str) -> Path | None:
    """The database file of an SQLite URI, None for any other store."""
    return Path(uri.removeprefix(_SQLITE)).absolute() if uri.startswith(_SQLITE) else None


def sqlite_uri(path: Path) -> str:
    """The URI of a database file."""
    return f"{_SQLITE}{path.absolute()}"


def tracking_failures() -> tuple[type[Exception], ...]:
    """What MLflow raises when it, its database or its artifacts are away, refuse, or are not installed."""
    failures: list[type[Exception]] = [ImportError, OSError]  # requests' exceptions are OSErrors
    try:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        failures += [Boto3Error, BotoCoreError, ClientError]
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        failures += [MlflowException, SQLAlchemyError]
    except ImportError:
        pass  # then none of its exceptions can be raised either
    return tuple(failures)
