"""An evaluation whose own process has no GPU: scored on the cluster's, with the figures that it gives anywhere.

The GPU is one by name only: Ray hands it out, and the networks run on the CPU of its node.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from integration.ray_nodes import PATIENCE_S, RayNodes
from PIL import Image

from jobs.cli import main
from ldznet.ldm_folder import ldm_digest
from ldznet.modeling import NetworkConfig, build_network, unet_config_of
from ldznet.prediction_config import PredictionConfig

pytestmark = pytest.mark.long  # `make test-cluster`

TASK = "ray::_evaluate_there"


@pytest.fixture(scope="module")
def network(miniature_ldm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network, as training leaves one."""
    folder = tmp_path_factory.mktemp("models") / "ldznet"
    torch.manual_seed(0)
    build_network(
        NetworkConfig(unet=unet_config_of(miniature_ldm), positional_latent_side=8)
    ).save_pretrained(folder)
    PredictionConfig(ldm_source=str(miniature_ldm), ldm_digest=ldm_digest(miniature_ldm), size=64).save(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def recipe(
    tmp_path_factory: pytest.TempPathFactory,
    small_recipe_in: Callable[..., Path],
    precompute_here: Callable[..., None],
    network: Path,
) -> Path:
    """A recipe whose features are there; it scores a network, masks that others made, and the LDM itself."""
    folder = tmp_path_factory.mktemp("experiment")
    evaluate: dict[str, Any] = {"sets": ["val"], "batch_size": 4, "examples": 2, "bootstrap": 20}
    path = small_recipe_in(folder, evaluate=evaluate)
    precompute_here(path)
    assert main(["evaluate", str(path), f"evaluate.models=[{network}]"]) == 0
    masks = folder / "others"
    for line in (folder / "run/phrases-val.jsonl").read_text().splitlines():
        target = masks / json.loads(line)["mask"]
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.eye(64, dtype=np.uint8) * 255).save(target)
    noise = {"source": "noise-map", "noise_map": {"timesteps": [400], "seeds": [0]}}
    return small_recipe_in(folder, evaluate=evaluate | {"models": [str(network), str(masks), noise]})


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """A head without a GPU."""
    with RayNodes(tmp_path_factory.mktemp("cluster")) as nodes:
        nodes.start_head(cpus=1)
        yield nodes


def results(output: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((output / "evaluation.json").read_text())["results"]
    for one in found:
        del one["seconds_per_sample"]
    return found


def test_without_a_gpu_in_the_cluster_that_is_told(cluster: RayNodes, recipe: Path, tmp_path: Path) -> None:
    log, options = tmp_path / "driver.log", ["evaluate.device=gpu", "train.cluster.wait_minutes=0.05"]
    driver = cluster.drive("jobs.evaluate", recipe, *options, f"output={tmp_path / 'run'}", log=log)
    assert driver.wait(PATIENCE_S) == 2
    assert "had no GPU for the evaluation for 0.05 minutes" in log.read_text()
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_the_clusters_gpu_scores_as_this_process_does(
    cluster: RayNodes, recipe: Path, network: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    told = cluster.run("jobs.evaluate", recipe, f"output={here}", log=tmp_path / "here.log")
    assert "on a GPU of the cluster" not in told
    node = cluster.add_node(cpus=1, gpus=1)
    there, log = tmp_path / "there", tmp_path / "there.log"
    driver = cluster.drive("jobs.evaluate", recipe, f"output={there}", log=log)
    cluster.while_running(driver, log, lambda: cluster.workers(node, TASK))
    assert driver.wait(PATIENCE_S) == 0, log.read_text()
    assert "scoring 2 systems on a GPU of the cluster" in log.read_text()
    assert results(there) == results(here)
    assert [one["kind"] for one in results(there)] == ["ldznet", "masks", "noise map"]
    assert (there / "report.html").is_file()
    assert not list((there / "storage").rglob("*.safetensors"))


def test_a_mistake_found_there_is_one_line_here(cluster: RayNodes, recipe: Path, tmp_path: Path) -> None:
    log, model = tmp_path / "driver.log", tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    driver = cluster.drive(
        "jobs.evaluate", recipe, f"evaluate.models=[{model}]", f"output={tmp_path / 'run'}", log=log
    )
    assert driver.wait(PATIENCE_S) == 2, log.read_text()
    assert log.read_text().splitlines()[-1].startswith("ldznet: ")
