"""Where runs are recorded."""

import os
from pathlib import Path

from pydantic import Field, field_validator

from ldznet.config import Config
from ldznet.errors import UserError
from pipeline.tracking.client import sqlite_path, sqlite_uri
from pipeline.tracking.redaction import redacted_text

SUBMISSION = "LDZNET_SUBMISSION"  # set for a job that `ldznet submit` sent: its id on the cluster
_STORES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")


class TrackingConfig(Config):
    """Where runs are recorded.

    A store's password belongs in the environment: MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and
    MLFLOW_TRACKING_PASSWORD.
    """

    enabled: bool = True
    uri: str | None = Field(
        default=None, description="left out: MLFLOW_TRACKING_URI, else an SQLite file in the run folder"
    )
    artifacts: str | None = Field(
        default=None, description="folder or s3:// of a new experiment; left out: beside the SQLite file"
    )
    experiment: str = Field(default="ldznet", min_length=1)
    run_name: str | None = None
    system_metrics: bool = Field(default=True, description="CPU, memory, disk, network and GPU every 10 s")

    def named(self, name: str) -> "TrackingConfig":
        """The same, for a run of that name where the recipe gives none."""
        return self if self.run_name else self.model_copy(update={"run_name": name})

    @field_validator("uri")
    @classmethod
    def _usable(cls, uri: str | None) -> str | None:
        return None if uri is None else check_store(uri, credentials=False)


def check_store(uri: str, *, credentials: bool = True) -> str:
    """The URI of a store that MLflow 3 still takes. `UserError` says what to give instead of any other."""
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme not in _STORES or ("://" not in uri and scheme != "databricks"):
        raise UserError(
            f"MLflow keeps no runs at {redacted_text(uri)!r}: give a server (http://HOST:PORT) or a database "
            "(sqlite:////FOLDER/mlflow.db); a plain folder is no store any more"
        )
    if not credentials and redacted_text(uri) != uri:
        raise UserError(
            "tracking.uri holds credentials: leave it out and set MLFLOW_TRACKING_URI in the environment"
        )
    return uri


def store_uri(config: TrackingConfig, folder: Path) -> str:
    """Where a run in `folder` is recorded: as configured, else as the environment says, else a file there."""
    if config.uri is not None:
        return config.uri
    named = os.environ.get("MLFLOW_TRACKING_URI")
    return check_store(named) if named else sqlite_uri(folder / "mlflow.db")


def artifact_location(config: TrackingConfig, uri: str) -> str | None:
    """Where a new experiment keeps artifacts: as configured, beside an SQLite file, or as the server says."""
    database = sqlite_path(uri)
    if config.artifacts is not None:
        return config.artifacts if "://" in config.artifacts else Path(config.artifacts).absolute().as_uri()
    return None if database is None else (database.parent / "mlflow-artifacts").as_uri()
