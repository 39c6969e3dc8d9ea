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
from pipeline.tracking.config import SUBMISSION, TrackingConfig, store_uri
from pipeline.tracking.delivery import MetricDelivery
from pipeline.tracking.experiment import experiment_id, experiment_of
from pipeline.tracking.params import accepted_name, leaves
from pipeline.tracking.params import log_params as log_params_of
from pipeline.tracking.redaction import REDACTED, redacted, redacted_file, redacted_text
from pipeline.tracking.spool import MetricPoint
from pipeline.tracking.waiting_points import WaitingPoints

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
_DIGEST_CHARACTERS = 36  # MLflow's own limit


class _RunGoneError(LookupError):
    """MLflow answers that it does not have the run, or that it was deleted there."""


class Tracker:
    """One MLflow run, written through `MlflowClient` (the fluent functions are bound to a thread).

    MLflow away, failing or not installed: one warning, everything goes on, metrics are kept in
    `metrics-spool-OWNER.jsonl` in the run folder and delivered when it is back (looked for once a minute, and at
    `finish`) or when the same owner is started again, even if it had no run before. A run without an owner is its own
    (`metrics-spool-RUN.jsonl`; `metrics-spool.jsonl` while it has no id). Pictures and artifacts of that time stay
    where they lie. A full disk ends nothing: metrics that find no room are lost, and `finish` tells how many.

    Secrets are taken out of whatever is logged (see `pipeline.tracking.redaction`).

    Args:
        config: Where to.
        folder: The run's folder on this machine.
    """

    def __init__(self, config: TrackingConfig, *, folder: Path) -> None:
        self._config = config
        self._uri = store_uri(config, folder)
        self._waiting = WaitingPoints(folder)
        self._delivery = MetricDelivery(once=False)
        self._client: MlflowClient | None = None
        self._run_id: str | None = None
        self._wanted_run: str | None = None
        self._owner: str | None = None
        self._on_created: Callable[[str], None] | None = None
        self._untold_run: str | None = None  # made here, and not handed to `on_created` yet
        self._tags: dict[str, str] = {}
        self._params: dict[str, str] = {}
        self._recipe: str | None = None
        self._experiment_id = ""
        self._buffer: list[MetricPoint] = []
        self._flushed_at = time.monotonic()
        self._retry_at = 0.0
        self._warned = False
        self._gone = False  # MLflow lacks the run, and another one is not ours to make
        self._open = False
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
    def known_run_id(self) -> str | None:
        """The id of the run that is written to, or will be once MLflow is back; None where there is none yet."""
        return self._wanted_run if self._config.enabled else None

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
        owner: str | None = None,
        on_created: Callable[[str], None] | None = None,
    ) -> str | None:
        """Begin a run, or go on with one.

        Args:
            job: `precompute`, `train`, `evaluate` …
            run_id: The run to take up again after a restart. What it already holds is not logged twice: of
                each metric, steps up to the last one that it has are left out. Where MLflow has no such run, or a
                deleted one, a new run takes its place if `on_created` is given; else metrics wait for whoever makes
                the owner's next run.
            recipe: The resolved recipe: its leaves become parameters, the whole an artifact `recipe.yaml`.
            tags: Such as the cache key and the manifest.
            sources: Job name -> id of the run that made this run's input; None entries are left out.
            parent_run_id: The run under which MLflow shows this one.
            owner: What the run is of, where that may be started again: it names the files in which metrics wait, and
                what a killed process left there goes into the run of the next one.
            on_created: Called with the id of a new run as soon as it exists, which is later where MLflow is away. An
                `OSError` is reported, and it is called again.

        Returns:
            The run's id, None where there is none (yet).
        """
        plain = recipe.model_dump(mode="json") if isinstance(recipe, BaseModel) else dict(recipe or {})
        plain = redacted(plain)
        self._recipe = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True) if plain else None
        self._params = dict(leaves(plain))
        self._tags = {"job": job, "mlflow.source.name": job, "mlflow.source.type": "JOB"}
        self._tags |= {key: str(redacted(value, key)) for key, value in (tags or {}).items()}
        self._tags |= {
            accepted_name(f"source_run.{name}"): source for name, source in (sources or {}).items() if source
        }
        if parent_run_id:
            self._tags["mlflow.parentRunId"] = parent_run_id
        if submission := os.environ.get(SUBMISSION):
            self._tags["ray.submission_id"] = submission
        self._wanted_run, self._owner = run_id, owner
        self._on_created, self._untold_run = on_created, None
        self._open = True
        self._waiting.name_after(owner or run_id)
        if owner is None and run_id is None:
            self._waiting.set_aside()
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
        if not self._config.enabled:
            return
        if self._may_try():
            self._waiting.send(self._buffer, self._deliver)
        else:
            self._waiting.keep(self._buffer)
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
        """Deliver what waits, end the run, and say what is kept or lost. Nothing happens where none was started."""
        if not self._config.enabled or not self._open:
            return
        self._open = False
        self._retry_at = 0.0
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        self._send_all()
        self._retry_at = 0.0
        self._attempt("ending the run", lambda client, run: client.set_terminated(run, status))
        self._waiting.report("MLflow lacks their run" if self._gone else "MLflow was away to the end")
        self._client = None

    def use(self, what: str, action: Callable[["MlflowClient", str], T]) -> T | None:
        """Do something else with the run: `action(client, run_id)`. None where MLflow is away or off."""
        return self._attempt(what, action)

    def _attempt(self, what: str, action: Callable[["MlflowClient", str], T]) -> T | None:
        if not self._may_try():
            return None
        self._tell_created()
        try:
            if self._client is None:
                self._client = open_client(self._uri)
            run_id = self._run_id or self._begin(self._client)
            result = action(self._client, run_id)
        except _RunGoneError as error:
            self._put_off(f"{error}: metrics wait for its successor", again=self._gone)
            self._gone = True
            return None
        except tracking_failures() as error:
            reason = redacted_text(str(error).strip().partition("\n")[0]) or type(error).__name__
            self._put_off(f"MLflow is away ({what}: {reason})", again=self._warned)
            return None
        if self._warned:
            log.info("MLflow is back")
        self._warned = self._gone = False
        return result

    def _may_try(self) -> bool:
        return self._config.enabled and time.monotonic() >= self._retry_at

    def _put_off(self, why: str, *, again: bool) -> None:
        """Leave MLflow alone for a while. Why is a warning the first time."""
        self._retry_at = time.monotonic() + _RETRY_SECONDS
        log.log(logging.DEBUG if again else logging.WARNING, "%s; the run goes on without it", why)
        self._warned = True

    def _begin(self, client: "MlflowClient") -> str:
        self._experiment_id = experiment_id(client, self._config, self._uri)
        wanted = self._standing_run(client)
        run_id = self._create(client) if wanted is None else self._take_up(client, wanted)
        # An owner's files may hold steps that an earlier process has logged, and a later one again.
        self._delivery = MetricDelivery(once=wanted is not None or self._owner is not None)
        log_params_of(client, run_id, self._params)
        if self._recipe is not None:
            client.log_text(run_id, self._recipe, "recipe.yaml")
        self._run_id = run_id
        if self._config.system_metrics:
            self._watch_system(run_id, resumed=wanted is not None)
        return run_id

    def _standing_run(self, client: "MlflowClient") -> str | None:
        """The run to take up; None where a new one is to be made. `_RunGoneError`: neither is ours to do."""
        wanted = self._wanted_run
        if wanted is None:
            return None
        found = experiment_of(client, wanted)
        if found is not None:
            self._experiment_id = found
            return wanted
        if (
            self._on_created is None
        ):  # a rank: its driver makes the new run, and a second one would split the metrics
            raise _RunGoneError(f"MLflow has no run {wanted} any more")
        log.warning("MLflow has no run %s any more: a new one takes its place", wanted)
        self._wanted_run = self._untold_run = None
        return None

    def _take_up(self, client: "MlflowClient", run_id: str) -> str:
        client.update_run(run_id, status="RUNNING")
        for key, value in self._tags.items():
            client.set_tag(run_id, key, value)
        return run_id

    def _create(self, client: "MlflowClient") -> str:
        name = self._config.run_name
        run_id: str = client.create_run(self._experiment_id, tags=self._tags, run_name=name).info.run_id
        # From here on the run exists: a failure below must not make another one.
        self._wanted_run = self._untold_run = run_id
        self._tell_created()
        if self._owner is None:
            self._waiting.hand_over(run_id)
        return run_id

    def _tell_created(self) -> None:
        """Hand a new run's id to whom it is to be known. What then fails is no fault of MLflow's."""
        if self._on_created is None or self._untold_run is None:
            return
        try:
            self._on_created(self._untold_run)
        except OSError as error:
            log.warning("MLflow run %s could not be recorded yet: %s", self._untold_run, error)
        else:
            self._untold_run = None

    def _watch_system(self, run_id: str, *, resumed: bool) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(run_id, resume_logging=resumed, tracking_uri=self._uri)
        self._monitor.start()

    def _send_all(self) -> None:
        """Deliver what is in the journal too: its writer is this process, or has ended."""
        gathered = self._waiting.gather()
        self.flush()
        if not gathered and self._waiting.gather():  # what was sent has made room
            self.flush()

    def _deliver(self, points: list[MetricPoint]) -> bool:
        sent = self._attempt("logging metrics", lambda client, run: self._delivery.send(client, run, points))
        return sent is not None


def _opened(picture: "Image | Path | bytes") -> "Image":
    from PIL import Image

    if isinstance(picture, bytes):
        return Image.open(BytesIO(picture))
    return Image.open(picture) if isinstance(picture, Path) else picture
