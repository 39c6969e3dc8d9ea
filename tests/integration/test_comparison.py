"""An experiment of docs/results.md in small, on the LDM of the package: trainings by seed, scores, a picture."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from jobs.comparison import compare
from jobs.local_ray import ray_session
from ldznet.noise_map_config import NoiseMapConfig
from pipeline.recipe import SystemConfig
from pipeline.results.experiments import Cell, Experiment
from pipeline.results.record import ResultRecord

pytestmark = pytest.mark.long  # `make test-cluster`

WHOLE = {"policy": "squash", "size": 64}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    content = {
        "name": "compared",
        "output": f"{tmp_path}/run",
        "data": {"format": "folder", "root": f"{tmp_path}/data"},
        "scenes": {
            "size": 64,
            "nouns": 16,
            "max_objects": 2,
            "min_scale": 0.4,
            "photos": 0,
            "counts": {"train": 6, "val": 3, "test": 3, "foreign": 0},
        },
        "ldm": {"source": "builtin:scenes-128"},
        "sets": {name: {"split": name, "view": WHOLE} for name in ("train", "val", "test")},
        "features": {"blocks": [8]},
        "cache": {"url": f"{tmp_path}/cache"},
        "network": {"blocks": [8]},
        "train": {"steps": 100, "batch_size": 4, "lr": 1e-4},
        "evaluate": {"bootstrap": 20},
        "tracking": {"experiment": "tests", "system_metrics": False},
    }
    path = tmp_path / "compared.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def slots() -> Iterator[None]:
    with ray_session(cpus=2):
        yield


@pytest.mark.usefixtures("slots")
def test_each_cell_is_trained_once_and_scored_beside_the_others(
    recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    experiment = Experiment(
        name="small",
        cells=tuple(Cell(system="LD-ZNet", overrides=("network.kind=ldznet",), seed=seed) for seed in (1, 2)),
        pairs=(("LD-ZNet", "LD-ZNet"),),
        sets=("test",),
        steps=2,
        others=(SystemConfig(source="noise-map", noise_map=NoiseMapConfig(timesteps=(400,), seeds=(0,))),),
        shown="test",
    )
    caplog.set_level("INFO")
    how: dict[str, Any] = {
        "recipe": recipe,
        "overrides": ("evaluate.examples=6",),
        "command": "make it",
        "into": tmp_path / "docs",
    }
    compare(experiment, **how)
    first = ResultRecord.load(tmp_path / "docs" / "small.json")
    assert [(row.model, row.seed, row.set_name) for row in first.rows] == [
        ("LD-ZNet", 1, "test"),
        ("LD-ZNet", 2, "test"),
        ("noise-map", None, "test"),
    ]
    (itself,) = first.differences
    assert (itself.set_name, itself.seeds, itself.ap.value) == ("test", 2, 0)
    assert first.steps == 2 and first.seeds == 2
    assert first.command == "make it"
    assert {"scenes", "precompute"} == set(first.minutes)
    minutes = [row.train_minutes for row in first.rows]
    assert all(minutes[:2]) and minutes[2] is None
    values = [row.ap.value for row in first.merged]
    assert values[0] == pytest.approx(sum(row.ap.value for row in first.rows[:2]) / 2)
    with Image.open(tmp_path / "docs" / "small.jpg") as picture:
        assert picture.width > picture.height / 2

    caplog.clear()
    compare(experiment.only(seeds=[2]), **(how | {"command": "make a part"}))
    again = ResultRecord.load(tmp_path / "docs" / "small.json")
    assert again.rows == tuple(
        row.model_copy(update={"seconds_per_phrase": new.seconds_per_phrase})
        for row, new in zip(first.rows, again.rows, strict=True)
    )
    assert again.rows[0] == first.rows[0]
    assert again.command == "make it && make a part"
    assert sum("finished before" in record.getMessage() for record in caplog.records) == 1
