"""`ldznet train GRID --test` scores where `evaluate.device` says. The trainings of this grid are finished."""

from collections.abc import Callable
from pathlib import Path

import pytest
import ray
import torch

from jobs import train
from jobs.local_ray import ray_session
from ldznet.ldm_folder import ldm_digest
from ldznet.modeling import NetworkConfig, build_network, unet_config_of
from ldznet.prediction_config import PredictionConfig
from pipeline.experiments.cell import load_experiment
from pipeline.experiments.run import GridRun
from pipeline.models.folder import upload_model
from pipeline.object_store.opening import open_store
from pipeline.training.run import FINISHED_RECORD, FinishedTraining

GRID = (
    "seed=1,2", "evaluate.sets=[held]", "sets.held={split: val, view: {size: 64}, prompts: ['{}.']}",
)  # fmt: skip


@pytest.fixture
def finished(
    small_recipe: Callable[..., Path],
    precompute_here: Callable[..., None],
    miniature_ldm: Path,
    tmp_path: Path,
) -> Path:
    """A recipe of whose grid nothing is left to train."""
    path, model = small_recipe(), tmp_path / "model"
    precompute_here(path, *GRID[1:])
    torch.manual_seed(0)
    config = NetworkConfig(unet=unet_config_of(miniature_ldm), positional_latent_side=8)
    build_network(config).save_pretrained(model)
    PredictionConfig(ldm_source=str(miniature_ldm), ldm_digest=ldm_digest(miniature_ldm), size=64).save(model)
    experiment = load_experiment(path, GRID)
    grid = GridRun(experiment)
    left = FinishedTraining(facts={"step": 4, "miou": 0.5}, run_id=None, version=None, patience=None)
    for cell in experiment.cells:
        training = grid.training(cell)
        upload_model(model, url=training.model_url, facts=left.facts)
        store = open_store(f"{training.storage}/{training.name}")
        store.put(FINISHED_RECORD, left.model_dump_json().encode())
    return path


@pytest.mark.slow
def test_the_clusters_gpu_is_asked_for(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """This cluster has none, which is told: nothing is scored on the CPU of the job's process."""
    words = [str(finished), *GRID, "--test"]
    with ray_session(cpus=1):
        monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
        assert train.main([*words, "evaluate.device=gpu", "train.cluster.wait_minutes=0.01"]) == 2
    assert "had no GPU for the evaluation" in capsys.readouterr().err
