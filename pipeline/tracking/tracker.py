"""Tracking: what ran, on what, made from what, and how it went, in MLflow. Training never waits for it."""

import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel

from pipeline.tracking.client import open_client, tracking_failures
from pipeline.tracking.config import SUBMISSION, TrackingConfig, artifact_location, store_uri
from pipeline.tracking.params import leaves
from pipeline.tracking.params import log_params as log_params_of
from pipeline.tracking.redaction import REDACTED, redacted, redacted_file, redacted_text
from pipeline.tracking.spool import MetricPoint, MetricSpool

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from PIL.Image import Image

__all__ = ["Tracker", "TrackingConfig"]

log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]
T = TypeVar("T")

_RETRY_SECONDS = 60.0
_FLUSH_SECONDS = 5.0
_FLUSH_POINTS = 500
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # else the page takes us for prompts
# MLflow's own limits
_POINTS_A_REQUEST = 1000
_DIGEST_CHARACTERS = 36


class Tracker:
    """One MLflow run, written through `MlflowClient` (the fluent functions are bound to a thread).

    MLflow away, failing or not installed: one warning, everything goes on, metrics are kept in
    `metrics-spool-RUN.jsonl` in the run folder (`metrics-spool.jsonl` while the run has no id) and delivered when it
    is back (looked for once a minute, and at `finish`) or when the same run is started again. Pictures and artifacts
    of that time stay where they lie.

    Secrets are taken out of whatever is logged (see `pipeline.tracking.redaction`).

    Args:
        config: Where to.
        folder: The run's folder on this machine.
    """

    def __init__(self, config: TrackingConfig, *, folder: Path) -> None:
        self._config = config
        self._uri = store_uri(config, folder)
        self._folder = folder
        self._spool = MetricSpool.of_run(folder)
        self._client: MlflowClient | None = None
        self._run_id: str | None = None
        self._wanted_run: str | None = None
        self._tags: dict[str, str] = {}
        self._params: dict[str, str] = {}
        self._recipe: str | None = None
        self._experiment_id = ""
        self._buffer: list[MetricPoint] = []
        self._flushed_at = time.monotonic()
        self._retry_at = 0.0
        self._warned = False
        self._open = False
        self._last_steps: dict[str, int] | None = None  # of a run that was taken up again
        self._monitor: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        killed = kind is not None and issubclass(kind, (KeyboardInterrupt, SystemExit))
        self.finish("FINISHED" if kind is None else "KILLED" if killed else "FAILED")

    @property
    def run_id(self) -> str | None:
        """The run's id in MLflow; None where tracking is off or MLflow is away since the start."""
        return self._run_id

    @property
    def uri(self) -> str:
        """The store's URI. It may hold credentials: print `open_command` instead."""
        return self._uri

    @property
    def experiment_id(self) -> str:
        """The experiment's id; empty before `start` reached MLflow."""
        return self._experiment_id

    @property
    def open_command(self) -> str:
        """What to type, or where to look, to see the runs."""
        if self._uri.startswith("http"):
            return redacted_text(self._uri)
        return f"mlflow ui --backend-store-uri {redacted_text(self._uri)}"

    @property
    def run_url(self) -> str | None:
        """The run's page; None where there is no run, or no server that shows it."""
        if self._run_id is None or not self._uri.startswith("http"):
            return None
        place = redacted_text(self._uri).replace(f"{REDACTED}@", "").rstrip("/")
        return f"{place}/#/experiments/{self._experiment_id}/runs/{self._run_id}"

    def start(
        self,
        *,
        job: str,
        run_id: str | None = None,
        recipe: BaseModel | Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        sources: Mapping[str, str | None] | None = None,
        parent_run_id: str | None = None,
    ) -> str | None:
        """Begin a run, or go on with one.

        Args:
            job: `precompute`, `train`, `evaluate` …
            run_id: The run to take up again after a restart. What it already holds is not logged twice: of
                each metric, steps up to the last one that it has are left out.
            recipe: The resolved recipe: its leaves become parameters, the whole an artifact `recipe.yaml`.
            tags: Such as the cache key and the manifest.
            sources: Job name -> id of the run that made this run's input; None entries are left out.
            parent_run_id: The run under which MLflow shows this one.

        Returns:
            The run's id, None where there is none (yet).
        """
        plain = recipe.model_dump(mode="json") if isinstance(recipe, BaseModel) else dict(recipe or {})
        plain = redacted(plain)
        self._recipe = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True) if plain else None
        self._params = dict(leaves(plain))
        self._tags = {"job": job, "mlflow.source.name": job, "mlflow.source.type": "JOB"}
        self._tags |= {key: str(redacted(value, key)) for key, value in (tags or {}).items()}
        self._tags |= {f"source_run.{name}": source for name, source in (sources or {}).items() if source}
        if parent_run_id:
            self._tags["mlflow.parentRunId"] = parent_run_id
        if submission := os.environ.get(SUBMISSION):
            self._tags["ray.submission_id"] = submission
        self._wanted_run = run_id
        self._open = True
        if run_id is None:
            self._spool.set_aside()
        else:
            self._spool = MetricSpool.of_run(self._folder, run_id)
        self._attempt("starting the run", lambda *_: None)
        if recipe is not None and self.run_url:  # by the driver, not by each rank
            log.info("MLflow run: %s", self.run_url)
        return self._run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log values at a step. They leave in batches, a few seconds later."""
        if not self._config.enabled:
            return
        now = int(time.time() * 1000)
        self._buffer += [
            MetricPoint(key=key, value=float(value), step=step, timestamp=now)
            for key, value in metrics.items()
        ]
        due = time.monotonic() - self._flushed_at >= _FLUSH_SECONDS
        if due or len(self._buffer) >= _FLUSH_POINTS:
            self.flush()

    def flush(self) -> None:
        """Deliver what `log_metrics` holds back, or keep it in the spool."""
        self._flushed_at = time.monotonic()
        if not self._config.enabled or (not self._buffer and not self._spool.path.exists()):
            return
        # Into the spool first where one exists, so that order is kept.
        waiting = self._spool.read() + self._buffer
        if self._attempt("logging metrics", lambda client, run: self._deliver(client, run, waiting)) is None:
            self._spool.append(self._buffer)
        else:
            self._spool.clear()
        self._buffer = []

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log facts that the recipe does not hold. One that the run already has keeps its value."""
        chosen = dict(leaves(redacted(dict(params))))
        self._attempt("logging parameters", lambda client, run: log_params_of(client, run, chosen))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set or replace tags."""
        shown = {key: str(redacted(value, key)) for key, value in tags.items()}

        def record(client: "MlflowClient", run: str) -> None:
            for key, value in shown.items():
                client.set_tag(run, key, value)

        self._attempt("setting tags", record)

    def log_dataset_input(self, name: str, *, digest: str, source: str, context: str = "training") -> None:
        """Name a data set or cache that the run reads. MLflow shows the digest's first 36 characters."""

        def record(client: "MlflowClient", run: str) -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            described = json.dumps({"url": redacted_text(source), "digest": digest})
            short = digest[:_DIGEST_CHARACTERS]
            dataset = Dataset(name=name, digest=short, source_type="ldznet", source=described)
            tag = InputTag(key="mlflow.data.context", value=context)
            client.log_inputs(run, datasets=[DatasetInput(dataset=dataset, tags=[tag])])

        self._attempt("naming a data set", record)

    def log_pictures(self, name: str, picture: "Image | Path | bytes", *, step: int | None = None) -> None:
        """Log a picture: one of a series where `step` is given, else `pictures/NAME.png`."""
        safe = re.sub(r"[^a-zA-Z0-9_\-./ ]+", "-", name)

        def record(client: "MlflowClient", run: str) -> None:
            image = _opened(picture)
            if step is None:
                client.log_image(run, image, artifact_file=f"pictures/{safe}.png")
            else:
                client.log_image(run, image, key=safe, step=step, synchronous=True)

        self._attempt("logging a picture", record)

    def log_text(self, text: str, artifact: str) -> None:
        """Log text as the artifact of that path."""
        clean = redacted_text(text)
        self._attempt("logging text", lambda client, run: client.log_text(run, clean, artifact))

    def log_artifact(self, path: Path, *, folder: str | None = None) -> None:
        """Log a file, into a folder of the run's artifacts."""

        def record(client: "MlflowClient", run: str) -> None:
            with tempfile.TemporaryDirectory() as scratch:
                client.log_artifact(run, str(redacted_file(path, Path(scratch))), folder)

        self._attempt(f"logging {path.name}", record)

    def log_artifacts(self, path: Path, *, folder: str | None = None) -> None:
        """Log all files of a folder, its own folders included."""
        for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
            inner = file.parent.relative_to(path).as_posix()
            place = "/".join(part for part in (folder or "", inner if inner != "." else "") if part)
            self.log_artifact(file, folder=place or None)

    def finish(self, status: Status = "FINISHED") -> None:
        """Deliver what waits and end the run. Nothing happens where none was started."""
        if not self._config.enabled or not self._open:
            return
        self._open = False
        self._retry_at = 0.0
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        self.flush()
        self._retry_at = 0.0
        self._attempt("ending the run", lambda client, run: client.set_terminated(run, status))
        left = len(self._spool)
        if left:
            log.warning("MLflow was away to the end: %d metric values are kept in %s", left, self._spool.path)
        self._client = None

    def use(self, what: str, action: Callable[["MlflowClient", str], T]) -> T | None:
        """Do something else with the run: `action(client, run_id)`. None where MLflow is away or off."""
        return self._attempt(what, action)

    def _attempt(self, what: str, action: Callable[["MlflowClient", str], T]) -> T | None:
        if not self._config.enabled or time.monotonic() < self._retry_at:
            return None
        try:
            if self._client is None:
                self._client = open_client(self._uri)
            run_id = self._run_id or self._begin(self._client)
            result = action(self._client, run_id)
        except tracking_failures() as error:
            self._retry_at = time.monotonic() + _RETRY_SECONDS
            level = logging.DEBUG if self._warned else logging.WARNING
            reason = redacted_text(str(error).strip().partition("\n")[0]) or type(error).__name__
            log.log(level, "MLflow is away (%s: %s); the run goes on without it", what, reason)
            self._warned = True
            return None
        if self._warned:
            log.info("MLflow is back")
            self._warned = False
        return result

    def _begin(self, client: "MlflowClient") -> str:
        self._experiment_id = self._experiment(client)
        if self._wanted_run is not None:
            run_id = self._wanted_run
            self._experiment_id = client.get_run(run_id).info.experiment_id
            client.update_run(run_id, status="RUNNING")
            for key, value in self._tags.items():
                client.set_tag(run_id, key, value)
            self._last_steps = {}
        else:
            name = self._config.run_name
            run_id = client.create_run(self._experiment_id, tags=self._tags, run_name=name).info.run_id
            # From here on the run exists: a failure below must not make another one.
            self._wanted_run = run_id
            self._spool = self._spool.hand_over(MetricSpool.of_run(self._folder, run_id))
        log_params_of(client, run_id, self._params)
        if self._recipe is not None:
            client.log_text(run_id, self._recipe, "recipe.yaml")
        self._run_id = run_id
        if self._config.system_metrics:
            self._watch_system(run_id)
        return run_id

    def _experiment(self, client: "MlflowClient") -> str:
        from mlflow.exceptions import MlflowException

        name = self._config.experiment
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                return client.create_experiment(
                    name,
                    artifact_location=artifact_location(self._config, self._uri),
                    tags=_EXPERIMENT_TAGS,
                )
            except MlflowException:
                found = client.get_experiment_by_name(name)  # another job was first
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            raise MlflowException(f"the experiment {name!r} was deleted: restore it or choose another name")
        return found.experiment_id

    def _watch_system(self, run_id: str) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(
            run_id, resume_logging=self._last_steps is not None, tracking_uri=self._uri
        )
        self._monitor.start()

    def _deliver(self, client: "MlflowClient", run_id: str, points: list[MetricPoint]) -> int:
        from mlflow.entities import Metric

        fresh, last_steps = self._new_ones(client, run_id, points)
        for start in range(0, len(fresh), _POINTS_A_REQUEST):
            part = fresh[start : start + _POINTS_A_REQUEST]
            client.log_batch(
                run_id,
                metrics=[Metric(point.key, point.value, point.timestamp, point.step) for point in part],
            )
        self._last_steps = last_steps
        return len(fresh)

    def _new_ones(
        self, client: "MlflowClient", run_id: str, points: list[MetricPoint]
    ) -> tuple[list[MetricPoint], dict[str, int] | None]:
        """Without the steps that a run taken up again has already, or has among these; and each metric's last step."""
        if self._last_steps is None:
            return points, None
        fresh, last = [], dict(self._last_steps)
        for point in points:
            if point.key not in last:
                history = client.get_metric_history(run_id, point.key)
                last[point.key] = max((metric.step for metric in history), default=-1)
            if point.step > last[point.key]:
                last[point.key] = point.step
                fresh.append(point)
        return fresh, last


def _opened(picture: "Image | Path | bytes") -> "Image":
    from PIL import Image

    if isinstance(picture, bytes):
        return Image.open(BytesIO(picture))
    return Image.open(picture) if isinstance(picture, Path) else picture
