"""A training as a whole, seen from its driver: its name, its places, and its record in MLflow."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ldznet.errors import UserError
from pipeline.cache.manifest import Manifest, find_answer, read_manifest
from pipeline.models.registered import register_model
from pipeline.object_store.opening import open_store
from pipeline.recipe import Recipe
from pipeline.tracking.tracker import Tracker
from pipeline.training.rank_training import required_manifest, training_identity

RUN_RECORD = "run.json"
PROVENANCE = "provenance.json"


def model_run_id(folder: Path) -> str | None:
    """The MLflow run that trained a model folder, where the folder tells."""
    path = folder / PROVENANCE
    return _read_run_id(path.read_bytes()) if path.is_file() else None


def source_runs(folders: Sequence[Path]) -> dict[str, str | None]:
    """The training runs of model folders, as the sources of a run that evaluates them."""
    return {f"train.{folder.name}": model_run_id(folder) for folder in folders}


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The training's run in MLflow."""

    tracker: Tracker
    registered_name: str
    alias: str = "best"

    @property
    def run_id(self) -> str | None:
        """The run's id; None where tracking is off or away."""
        return self.tracker.run_id

    def register(self, folder: Path) -> str | None:
        """Note the run in the model folder, log the folder with the run and register it. Returns the version."""
        (folder / PROVENANCE).write_text(json.dumps({"run_id": self.run_id}) + "\n", encoding="utf-8")
        return register_model(self.tracker, folder, name=self.registered_name, alias=self.alias)


class TrainingRun:
    """Names and places of one training. Equal recipes have the same ones, so a restart finds what it left."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.name = f"{recipe.name}-{recipe.network.label}-{training_identity(recipe)}"
        self.storage = recipe.storage_url
        self.model_url = f"{self.storage}/{self.name}/model"
        self.registered_name = f"{recipe.name}-{recipe.network.label}"

    def check(self) -> None:
        """Look for the user's mistakes before anything starts.

        Raises:
            UserError: a set that the training needs was not precomputed.
        """
        store = open_store(self._recipe.cache.url)
        for name in (self._recipe.train_on, self._recipe.validate_on):
            if name is not None and not required_manifest(store, self._recipe, name).samples:
                raise UserError(f"the set {name!r} holds no samples: all of them were left out")

    @contextmanager
    def recorded(self) -> Iterator[RunRecord]:
        """The run in MLflow: a new one, or after a restart the one that this training had before."""
        recipe = self._recipe
        store = open_store(f"{self.storage}/{self.name}")
        # The ranks' own tracker watches the system: twice would be once too often.
        quiet = recipe.tracking.named(self.name).model_copy(update={"system_metrics": False})
        with Tracker(quiet, folder=Path(recipe.output_folder)) as tracker:
            before = _read_run_id(store.get(RUN_RECORD)) if store.stat(RUN_RECORD) else None
            manifest, source = self._input()
            run_id = tracker.start(
                job="train",
                run_id=before,
                recipe=recipe,
                tags={
                    "cache_key": manifest.cache_key,
                    "manifest": manifest.manifest_id,
                    "training": self.name,
                },
                sources={"precompute": source},
            )
            if run_id is not None and before is None:
                store.put(RUN_RECORD, json.dumps({"run_id": run_id}).encode())
            tracker.log_dataset_input(
                f"{manifest.dataset}/{manifest.split}",
                digest=manifest.manifest_id,
                source=f"{recipe.cache.url}/{manifest.cache_key}",
            )
            yield RunRecord(tracker=tracker, registered_name=self.registered_name)

    def _input(self) -> tuple[Manifest, str | None]:
        store = open_store(self._recipe.cache.url)
        answer = find_answer(store, self._recipe.request_digest(self._recipe.train_on))
        assert answer is not None, "check() comes first"
        manifest = read_manifest(store, cache_key=answer.cache_key, manifest_id=answer.manifest_id)
        return manifest, answer.run_id


def _read_run_id(body: bytes) -> str | None:
    run_id: str | None = json.loads(body).get("run_id")
    return run_id
