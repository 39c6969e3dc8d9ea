"""`ldznet probe` and the noise map on a real cache: a grid takes one VAE pass a view, a second run repeats nothing."""

import csv
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from jobs.evaluate import main as evaluate
from jobs.local_ray import ray_session
from jobs.noise_map import main as noise_map
from jobs.precompute import main as precompute
from jobs.probe import main as probe
from pipeline.cache.manifest import find_manifest
from pipeline.loading.loader import SampleReader
from pipeline.object_store.opening import open_store
from pipeline.recipe_file import load_recipe

if TYPE_CHECKING:
    from pipeline.cache.entry import Entry

GRID = [100, 400, 999]
BLOCKS = [6, 7]
PROBE = {
    "control_on": "hidden",
    "blocks": BLOCKS,
    "steps": 20,
    "batch_size": 8,
    "side": 16,
    "bootstrap": 50,
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, small_recipe_in: Callable[..., Path]) -> Path:
    view = {"policy": "shared", "size": 64}
    return small_recipe_in(
        tmp_path_factory.mktemp("probe"),
        sets={
            "train": {"split": "train", "view": view, "timesteps": {"grid": GRID}},
            "val": {"split": "val", "view": {"size": 64}, "timesteps": {"grid": GRID}},
            "hidden": {
                "split": "val",
                "phrases": "hidden",
                "view": {"size": 64},
                "timesteps": {"grid": GRID},
            },
        },
        probe=PROBE,
    )


@pytest.fixture(scope="module")
def cached(recipe: Path) -> Iterator[Path]:
    with ray_session(cpus=2):
        assert precompute([str(recipe)]) == 0
        yield recipe


def test_every_sample_at_every_timestep_and_one_view(cached: Path) -> None:
    loaded = load_recipe(cached)
    store = open_store(loaded.cache.url)
    manifest = find_manifest(store, loaded.request_digest("train"))
    assert manifest is not None
    reader = SampleReader(store=store, manifest=manifest)
    seen: dict[str, list[Entry]] = {}
    for row in range(manifest.samples):
        (entry,) = reader.read_run(np.array([row]))
        seen.setdefault(str(entry.facts["sample_id"]), []).append(entry)
    for entries in seen.values():
        assert sorted(one.facts["timestep"] for one in entries) == GRID
        assert len({repr(one.facts["view"]) for one in entries}) == 1
        assert len({one.facts["prompt"] for one in entries}) == 1
        assert len({one.latents.numpy().tobytes() for one in entries}) == 1


def test_a_cell_for_each_block_and_timestep_and_none_twice(
    cached: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert probe([str(cached)]) == 0
    (folder,) = (Path(load_recipe(cached).output_folder) / "probe").iterdir()
    with (folder / "probe.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert [(int(cell["block"]), int(cell["timestep"])) for cell in cells] == [
        (block, timestep)
        for block in BLOCKS
        for timestep in GRID  # type: ignore[attr-defined]
    ]
    assert all(0 <= float(cell["low"]) <= float(cell["high"]) <= 1 for cell in cells)
    assert all(0 <= float(cell["control_low"]) <= float(cell["control_high"]) <= 1 for cell in cells)
    assert any(cell["control_ap"] != cell["ap"] for cell in cells)  # other phrases, other features
    assert (folder / "probe.png").stat().st_size > 10_000
    written = {path: path.stat().st_mtime_ns for path in folder.glob("t*.json")}
    assert len(written) == len(GRID)
    next(iter(written)).unlink()  # as though the probe had been stopped there
    assert probe([str(cached)]) == 0
    again = {path: path.stat().st_mtime_ns for path in folder.glob("t*.json")}
    assert sum(again[path] != written[path] for path in written) == 1


def test_a_set_without_a_grid_is_named(cached: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert probe([str(cached), "sets.val.timesteps.grid=null"]) == 2
    assert "sets.val.timesteps a grid" in capsys.readouterr().err


def test_the_noise_map_is_scored_like_any_system(cached: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    system = "{source: noise-map, noise_map: {timesteps: [400], seeds: [0]}}"
    assert evaluate([str(cached), f"evaluate.models=[{system}]", "evaluate.sets=[val]"]) == 0
    assert "noise-map on val" in caplog.text


def test_a_noise_map_of_a_photo(
    miniature_ldm: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = str(small_data / "images" / "0.png")
    words = ["the red box", "--ldm", str(miniature_ldm), "--size", "64", "--timesteps", "400", "--seeds", "0"]
    assert noise_map([photo, *words, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "0-the-red-box-noise.png").is_file()
    assert noise_map([photo, *words, "--size", "50"]) == 2
    assert "--size 50 is no multiple of 64" in capsys.readouterr().err
