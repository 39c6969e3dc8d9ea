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
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore
from pipeline.registered_model import resolve_model
from pipeline.tracking_client import open_client, sqlite_uri

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

    def steps_of(self, metric: str) -> list[int]:
        (run,) = self.runs("train")
        return sorted(point.step for point in self.mlflow().get_metric_history(run.info.run_id, metric))

    def checkpoints(self) -> list[str]:
        """Folders of checkpoints in the storage."""
        keys = (info.key.split("/") for info in self.storage.list())
        return sorted({part for parts in keys for part in parts if part.startswith("step-")})


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
    (run,) = experiment.runs("train")
    assert json.loads((experiment.model / "provenance.json").read_text()) == {"run_id": run.info.run_id}
    assert not list(experiment.model.glob("*.bin")) + list(experiment.model.glob("*.pt"))


def test_runs_are_linked(experiment: Experiment) -> None:
    (computed,), (trained,) = experiment.runs("precompute"), experiment.runs("train")
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


def test_every_step_is_logged_once_and_checkpoints_are_kept(experiment: Experiment) -> None:
    assert experiment.steps_of("train/loss") == [1, 2, 3, 4]
    assert experiment.steps_of("val/miou") == [2, 4]
    assert experiment.checkpoints() == ["step-00000002", "step-00000004"]
    names = {info.key.rsplit("/", 1)[-1] for info in experiment.storage.list() if "/model/" in info.key}
    assert {"model.json", "config.json", "model.safetensors", "prediction.json"} <= names


def test_running_again_computes_nothing_more_and_keeps_the_run(experiment: Experiment) -> None:
    before = {info.key: info.etag for info in experiment.storage.list("small") if "/step-" in info.key}
    experiment.run(train)
    assert experiment.steps_of("train/loss") == [1, 2, 3, 4]  # of the one run there is
    after = {info.key: info.etag for info in experiment.storage.list("small") if "/step-" in info.key}
    assert after == before
    assert len(experiment.mlflow().search_model_versions("name='small-ldznet'")) == 1


def test_evaluate_scores_the_model_and_links_its_run(experiment: Experiment) -> None:
    experiment.run(evaluate)
    (row,) = json.loads((experiment.output / "evaluation.json").read_text())
    assert (row["model"], row["set_name"], row["scores"]["phrases"]) == ("ldznet", "val", 9)
    assert 0 <= row["scores"]["miou"]["best"]["value"] <= 1
    report = (experiment.output / "report.html").read_text()
    assert "<img" in report
    assert "http://" not in report.replace("http://www.w3.org", "")  # self-contained
    (run,) = experiment.runs("evaluate")
    assert run.data.tags["source_run.train.ldznet"] == experiment.runs("train")[0].info.run_id


@pytest.mark.parametrize(("stage", "steps"), [(1, 6), (3, 8)])
def test_other_zero_stages_go_on_from_there(stage: int, steps: int, experiment: Experiment) -> None:
    experiment.run(train, f"train.zero_stage={stage}", f"train.steps={steps}")
    assert experiment.steps_of("train/loss") == list(range(1, steps + 1))
    assert experiment.checkpoints()[-1] == f"step-{steps:08d}"
    network_from_pretrained(experiment.model)
