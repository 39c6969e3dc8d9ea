"""`ldznet train` on a real S3 server, Ray Train, DeepSpeed and MLflow: what it leaves behind, and how it goes on."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from jobs import evaluate, precompute, train
from jobs.local_ray import ray_session
from ldznet.ldm_folder import ldm_digest
from ldznet.modeling import network_from_pretrained
from ldznet.prediction_config import PredictionConfig
from pipeline.models.registered import resolve_model
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore
from pipeline.tracking.client import open_client, sqlite_uri

pytestmark = pytest.mark.long  # `make test-cluster`

STEPS = 4


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A recipe whose features are on S3 and whose trainings go there."""

    recipe: Path
    overrides: list[str]
    storage: ObjectStore

    def run(self, job: Any, *more: str) -> None:
        assert job.main([str(self.recipe), *self.overrides, *more]) == 0

    @property
    def output(self) -> Path:
        return self.recipe.parent / "run"

    @property
    def model(self) -> Path:
        return self.output / "models/ldznet"

    def mlflow(self) -> Any:
        return open_client(self.uri)

    @property
    def uri(self) -> str:
        return sqlite_uri(self.output / "mlflow.db")

    def runs(self, job: str) -> list[Any]:
        client = self.mlflow()
        experiment = client.get_experiment_by_name("tests")
        return list(client.search_runs([experiment.experiment_id], filter_string=f"tags.job = '{job}'"))

    def training(self, steps: int = STEPS) -> Any:
        """The MLflow run of the training of so many steps."""
        (run,) = (run for run in self.runs("train") if run.data.params["train.steps"] == str(steps))
        return run

    def history(self, metric: str, steps: int = STEPS) -> dict[int, float]:
        """Step -> value. A step that was logged twice is an error."""
        points = self.mlflow().get_metric_history(self.training(steps).info.run_id, metric)
        assert len({point.step for point in points}) == len(points)
        return {point.step: point.value for point in sorted(points, key=lambda point: point.step)}

    def checkpoints(self, steps: int = STEPS) -> dict[str, str]:
        """Key -> ETag of what the checkpoints of a training hold."""
        name = self.training(steps).data.tags["training"]
        return {info.key: info.etag for info in self.storage.list(f"{name}/checkpoints/step-")}


@pytest.fixture(scope="module")
def experiment(
    seaweedfs: Any, tmp_path_factory: pytest.TempPathFactory, small_recipe_in: Callable[..., Path]
) -> Iterator[Experiment]:
    """Precomputed with one draw a sample, trained for a few steps by two ranks under ZeRO-2."""
    place = f"s3://{seaweedfs.bucket}/{uuid4().hex}"
    made = Experiment(
        recipe=small_recipe_in(
            tmp_path_factory.mktemp("train"),
            tracking={"experiment": "tests", "system_metrics": False},
            train={
                "steps": STEPS,
                "batch_size": 8,
                "lr": 1e-3,
                "workers": 2,
                "validate_every": 2,
                "checkpoint_every": 2,
            },
        ),
        overrides=["sets.train.draws=1", f"cache.url={place}/cache", f"storage={place}/training"],
        storage=open_store(f"{place}/training"),
    )
    with ray_session(cpus=3):
        made.run(precompute)
        made.run(train)
        yield made


def test_the_model_is_a_folder_that_says_where_it_comes_from(
    experiment: Experiment, miniature_ldm: Path
) -> None:
    network = network_from_pretrained(experiment.model)
    assert network.config.kind == "ldznet"
    prediction = PredictionConfig.load(experiment.model)
    assert prediction.ldm_digest == ldm_digest(miniature_ldm)
    assert (prediction.size, prediction.timestep) == (64, 400)
    run_id = experiment.training().info.run_id
    assert json.loads((experiment.model / "provenance.json").read_text()) == {"run_id": run_id}
    assert not list(experiment.model.glob("*.bin")) + list(experiment.model.glob("*.pt"))


def test_runs_are_linked(experiment: Experiment) -> None:
    (computed,), trained = experiment.runs("precompute"), experiment.training()
    tags = trained.data.tags
    assert tags["source_run.precompute"] == computed.info.run_id
    assert tags["cache_key"] == computed.data.tags["cache_key.train"]
    assert tags["manifest"] == computed.data.tags["manifest.train"]
    assert {run.info.status for run in (computed, trained)} == {"FINISHED"}
    assert trained.data.params["train.lr"] == "0.001"
    assert trained.inputs.dataset_inputs[0].dataset.name == "folder/train"
    version = experiment.mlflow().get_model_version_by_alias("small-ldznet", "best")
    assert version.run_id == trained.info.run_id
    registered = resolve_model("models:/small-ldznet@best", experiment.uri)
    weights = "model.safetensors"
    assert (registered / weights).read_bytes() == (experiment.model / weights).read_bytes()


def test_no_secret_is_recorded(experiment: Experiment, seaweedfs: Any) -> None:
    secret = seaweedfs.environment()["AWS_SECRET_ACCESS_KEY"].encode()
    for path in experiment.output.rglob("*"):
        assert not path.is_file() or secret not in path.read_bytes(), f"{path} holds the secret"
    for info in experiment.storage.list():
        assert secret not in experiment.storage.get(info.key), f"{info.key} holds the secret"


def test_every_step_is_logged_and_checkpoints_are_kept(experiment: Experiment) -> None:
    assert list(experiment.history("train/loss")) == [1, 2, 3, 4]
    assert list(experiment.history("val/miou")) == [2, 4]
    folders = {key.split("/")[2][: len("step-00000000")] for key in experiment.checkpoints()}
    assert folders == {"step-00000002", "step-00000004"}
    names = {info.key.rsplit("/", 1)[-1] for info in experiment.storage.list() if "/model/" in info.key}
    assert {"model.json", "config.json", "model.safetensors", "prediction.json"} <= names


def test_running_again_computes_nothing_more_and_keeps_the_run(experiment: Experiment) -> None:
    losses, checkpoints, run = (
        experiment.history("train/loss"),
        experiment.checkpoints(),
        experiment.training(),
    )
    experiment.run(train)
    assert experiment.history("train/loss") == losses
    assert experiment.checkpoints() == checkpoints
    assert experiment.training().info.run_id == run.info.run_id


def test_evaluate_scores_the_model_and_links_its_run(experiment: Experiment) -> None:
    experiment.run(evaluate)
    rows = json.loads((experiment.output / "evaluation.json").read_text())["results"]
    assert {(row["model"], row["set_name"], row["scores"]["phrases"]) for row in rows} == {
        ("ldznet", "val", 9)
    }
    assert 0 <= rows[0]["scores"]["miou"]["best"]["value"] <= 1
    report = (experiment.output / "report.html").read_text()
    assert "data:image/" in report
    (run,) = experiment.runs("evaluate")
    assert run.data.tags["source_run.train.ldznet"] == experiment.training().info.run_id


@pytest.mark.parametrize(("stage", "ranks", "steps"), [(1, 1, 5), (3, 2, 6)])
def test_other_zero_stages_train_alike(stage: int, ranks: int, steps: int, experiment: Experiment) -> None:
    usual = experiment.history("train/loss")
    experiment.run(train, f"train.zero_stage={stage}", f"train.workers={ranks}", f"train.steps={steps}")
    losses = experiment.history("train/loss", steps)
    assert list(losses) == list(range(1, steps + 1))
    assert [losses[step] for step in usual] == pytest.approx(list(usual.values()), rel=1e-3)
    assert experiment.training(steps).data.params["train.zero_stage"] == str(stage)
    network_from_pretrained(experiment.model)
