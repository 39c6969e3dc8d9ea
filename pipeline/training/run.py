"""A training as a whole, seen from its driver: its name, its places, and its record in MLflow."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ldznet.config import Config
from ldznet.errors import UserError
from ldznet.ldm_folder import ldm_digest, resolve_ldm
from pipeline.cache.lease import reading_lease
from pipeline.cache.manifest import Manifest, find_answer, find_manifest
from pipeline.models.folder import PROVENANCE, SEAL, download_model
from pipeline.models.registered import register_model
from pipeline.object_store.opening import open_store
from pipeline.online.shard_order import ShardOrder
from pipeline.recipe import Recipe
from pipeline.tracking.tracker import Tracker
from pipeline.training.cached_sets import CachedSets
from pipeline.training.rank_training import training_identity

RUN_RECORD = "run.json"
FINISHED_RECORD = "finished.json"
BEST = "best"


def model_run_id(folder: Path) -> str | None:
    """The MLflow run that trained a model folder, where the folder tells."""
    path = folder / PROVENANCE
    return _read_run_id(path.read_bytes()) if path.is_file() else None


def source_runs(folders: Sequence[Path]) -> dict[str, str | None]:
    """The training runs of model folders, as the sources of a run that evaluates them."""
    return {f"train.{folder.name}": model_run_id(folder) for folder in folders}


class FinishedTraining(Config):
    """What a training left."""

    facts: dict[str, float]  # `step` of the kept weights, and the figures of the validation that chose them
    run_id: str | None  # in MLflow
    version: str | None  # in the model registry
    patience: int | None  # that it was stopped by, or would have been
    ldm: str | None = None  # digest of the frozen LDM
    samples: str | None = None  # digest of the samples and their order, where a cache gave them


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The training's run in MLflow."""

    tracker: Tracker
    registered_name: str

    @property
    def run_id(self) -> str | None:
        """The run's id; None where tracking is off, or away since before the training had a run."""
        return self.tracker.known_run_id

    @property
    def run_url(self) -> str | None:
        """The run's page; None where no server shows it."""
        return self.tracker.run_url

    def register(self, folder: Path, *, alias: str | None = BEST) -> str | None:
        """Note the run in the model folder, log the folder with the run and register it. Returns the version."""
        (folder / PROVENANCE).write_text(json.dumps({"run_id": self.run_id}) + "\n", encoding="utf-8")
        return register_model(self.tracker, folder, name=self.registered_name, alias=alias)


class TrainingRun:
    """Names and places of one training. Equal recipes have the same ones, so a restart finds what it left.

    Args:
        recipe: of the training.
        label: names the model's folder in the output folder; the network's unless told.
        cached: what of the cache it reads, where that was found already: a grid's trainings all read the same.
    """

    def __init__(self, recipe: Recipe, *, label: str | None = None, cached: CachedSets | None = None) -> None:
        self._recipe = recipe
        self._cached = cached
        self.name = f"{recipe.name}-{recipe.network.label}-{training_identity(recipe)}"
        self.storage = recipe.storage_url
        self.model_url = f"{self.storage}/{self.name}/model"
        self.checkpoints_url = f"{self.storage}/{self.name}/checkpoints"
        self.registered_name = f"{recipe.name}-{recipe.network.label}"
        self.folder = Path(recipe.output_folder) / "models" / (label or recipe.network.label)
        # Equal recipes whose trainings go to other storages are other trainings, even from one output folder.
        self.metrics_owner = f"{self.name}-{hashlib.sha256(self.storage.encode()).hexdigest()[:8]}"

    def check(self) -> None:
        """Look for the user's mistakes before anything starts.

        Raises:
            UserError: a set that the training needs was not precomputed, or the best weights would be chosen by what
                they were trained on.
        """
        if self._recipe.validates_on_training_photos:
            raise UserError(
                f"validate_on={self._recipe.validate_on} is what it trains on: name a set of the val split, or null"
            )
        for name, manifest in self._manifests().items():
            if not manifest.samples:
                raise UserError(f"the set {name!r} holds no samples: all of them were left out")

    @contextmanager
    def cache_held(self) -> Iterator[None]:
        """Keep `ldznet cache collect --drop` from removing what this training reads; `check` once more under it.

        What was found there is what it reads from then on, whatever a `precompute` finishes beside it.
        """
        store = open_store(self._recipe.cache.url)
        with reading_lease(store, [manifest.spec for manifest in self._manifests().values()]):
            self._cached = self.cached
            self.check()
            yield

    @property
    def cached(self) -> CachedSets:
        """What of the cache it reads: found anew each time until `cache_held`, then always the same.

        Raises:
            UserError: a set that it needs was not precomputed.
        """
        return self._cached or CachedSets.find(self._recipe, open_store(self._recipe.cache.url))

    def read_as(self, other: "TrainingRun") -> None:
        """Read what another training of the same sets does."""
        self._cached = other.cached

    def finished(self) -> FinishedTraining | None:
        """What the training left, where it came to its end and nothing asks it to go on.

        Raises:
            UserError: the recipe leads to other samples now, or to another frozen LDM.
        """
        store = open_store(f"{self.storage}/{self.name}")
        if store.stat(FINISHED_RECORD) is None or store.stat(f"model/{SEAL}") is None:
            return None
        try:
            record = FinishedTraining.model_validate_json(store.get(FINISHED_RECORD))
        except ValidationError:  # of another version: its last checkpoint tells
            return None
        now = self._trained_on()
        if any(
            known is not None and getattr(record, name) not in {None, known} for name, known in now.items()
        ):
            raise UserError(
                f"the training {self.name} was finished on other samples or another frozen LDM than the recipe has: "
                f"give it another `name`, or remove {self.storage}/{self.name} to train it anew"
            )
        return record if record.patience == self._recipe.train.patience else None

    def _trained_on(self) -> dict[str, str | None]:
        """What a later run compares. Cached and online features are one training: online, only the LDM is compared."""
        recipe, store = self._recipe, open_store(self._recipe.cache.url)
        if recipe.train.features == "online":
            return {"ldm": ldm_digest(resolve_ldm(recipe.ldm.source)), "samples": None}
        if self._cached is not None:
            manifest = self._cached.read(store, recipe.train_on)
        else:
            manifest = find_manifest(store, recipe.request_digest(recipe.train_on))
        if manifest is None:  # given up since
            return {"ldm": None, "samples": None}
        return {"ldm": manifest.spec.ldm_digest, "samples": ShardOrder.of_manifest(store, manifest).digest}

    def fetch_model(self) -> dict[str, float]:
        """The best model into the output folder. Returns the figures that it was chosen by, and its `step`.

        Raises:
            UserError: the training has left none yet.
        """
        return download_model(self.model_url, self.folder)

    def conclude(self, record: RunRecord, *, alias: str | None = BEST) -> FinishedTraining:
        """Fetch the best model, register it, and note that this training is finished.

        An alias other than None is moved to the model's version.
        """
        facts, before = self.fetch_model(), self.finished()
        version = record.register(self.folder, alias=alias)
        finished = FinishedTraining(
            facts=facts,
            run_id=record.run_id or (before.run_id if before else None),  # MLflow may be away this time
            version=version or (before.version if before else None),
            patience=self._recipe.train.patience,
            **self._trained_on(),
        )
        open_store(f"{self.storage}/{self.name}").put(FINISHED_RECORD, finished.model_dump_json().encode())
        return finished

    @contextmanager
    def recorded(self, *, parent_run_id: str | None = None, title: str | None = None) -> Iterator[RunRecord]:
        """The run in MLflow: a new one, or after a restart the one that this training had before.

        Args:
            parent_run_id: of the grid that the training is a cell of.
            title: names a new run where the recipe does not; the training's name unless told.
        """
        recipe = self._recipe
        store = open_store(f"{self.storage}/{self.name}")
        # The ranks' own tracker watches the system: twice would be once too often.
        quiet = recipe.tracking.named(title or self.name).model_copy(update={"system_metrics": False})
        with Tracker(quiet, folder=Path(recipe.output_folder)) as tracker:
            before = _read_run_id(store.get(RUN_RECORD)) if store.stat(RUN_RECORD) else None
            manifest, source = self._input()
            tracker.start(
                job="train",
                run_id=before,
                recipe=recipe,
                tags={"training": self.name, **_origin(recipe, manifest)},
                sources={"precompute": source},
                parent_run_id=parent_run_id,
                owner=self.metrics_owner,
                on_created=lambda run_id: store.put(RUN_RECORD, json.dumps({"run_id": run_id}).encode()),
            )
            self.log_input(tracker)
            yield RunRecord(tracker=tracker, registered_name=self.registered_name)

    def log_input(self, tracker: Tracker) -> None:
        """Name what the training reads as the input of the tracker's run."""
        recipe, (manifest, _) = self._recipe, self._input()
        if manifest is not None:
            tracker.log_dataset_input(
                f"{manifest.dataset}/{manifest.split}",
                digest=manifest.manifest_id,
                source=f"{recipe.cache.url}/{manifest.cache_key}",
            )
            return
        data, split = recipe.data_of(recipe.train_on), recipe.set_named(recipe.train_on).split
        request = recipe.request_digest(recipe.train_on)
        tracker.log_dataset_input(f"{data.name or data.format}/{split}", digest=request, source=data.root)

    def _manifests(self) -> dict[str, Manifest]:
        store, cached = open_store(self._recipe.cache.url), self.cached
        found = {name: cached.read(store, name) for name in cached.manifests}
        return {name: manifest for name, manifest in found.items() if manifest is not None}

    def _input(self) -> tuple[Manifest | None, str | None]:
        """What trains, and the MLflow run that computed it."""
        recipe, store = self._recipe, open_store(self._recipe.cache.url)
        manifest = self.cached.read(store, recipe.train_on)
        answer = find_answer(store, recipe.request_digest(recipe.train_on))
        known = answer is not None and manifest is not None and answer.manifest_id == manifest.manifest_id
        return manifest, answer.run_id if answer is not None and known else None


def _origin(recipe: Recipe, manifest: Manifest | None) -> dict[str, str]:
    tags: dict[str, str] = {"features": recipe.train.features}
    return (
        tags
        if manifest is None
        else {**tags, "cache_key": manifest.cache_key, "manifest": manifest.manifest_id}
    )


def _read_run_id(body: bytes) -> str | None:
    run_id: str | None = json.loads(body).get("run_id")
    return run_id
