"""Real photos through the shipped recipes: precompute, a few training steps, evaluation.

On slices of the photos beside the checkout where they are; always on a few photos in the same layouts made here.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data as photos

from jobs import evaluate, precompute, train
from jobs.local_ray import ray_session
from pipeline.cache.manifest import find_manifest
from pipeline.object_store.opening import open_store
from pipeline.recipe_file import load_recipe

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"
PHOTOS = ("astronaut", "coffee", "rocket")
TRIANGLE = [[[60.0, 60.0], [300.5, 80.0], [180.0, 290.0]]]


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with ray_session(cpus=2):
        yield


def precomputed(name: str, root: Path, output: Path, miniature_ldm: Path, *more: str) -> list[str]:
    """Features by a shipped recipe, at a tiny size; the arguments for the jobs that follow."""
    recipe = RECIPES / f"{name}.yaml"
    sizes = [f"sets.{key}.view.size=64" for key in load_recipe(recipe).sets]
    overrides = [
        f"data.root={root}",
        f"output={output}",
        f"cache.url={output}/cache",
        f"ldm.source={miniature_ldm}",
        *sizes,
        "cache.workers=1",
        "train.workers=1",
        "train.batch_size=4",
        "train.steps=3",
        "evaluate.batch_size=4",
        "evaluate.bootstrap=20",
        "tracking.enabled=false",
        *more,
    ]
    assert precompute.main([str(recipe), *overrides]) == 0
    loaded = load_recipe(recipe, overrides)
    for key in loaded.sets:
        manifest = find_manifest(open_store(loaded.cache.url), loaded.request_digest(key))
        assert manifest is not None
        assert manifest.failed == 0
        assert manifest.samples > 0
    return [str(recipe), *overrides]


def evaluated(arguments: list[str], output: Path) -> int:
    """Trains and evaluates; the number of phrases that were scored."""
    assert train.main(arguments) == 0
    assert evaluate.main(arguments) == 0
    results = json.loads((output / "evaluation.json").read_text())["results"]
    assert {result["set_name"] for result in results} == {"test"}
    assert all(0 <= result["scores"]["ap"]["value"] <= 1 for result in results)
    assert (output / "report.html").stat().st_size > 10_000
    phrases: int = results[0]["scores"]["phrases"]
    return phrases


def write_photo(name: str, path: Path) -> tuple[int, int]:
    """One of scikit-image's photos as JPEG; its width and height."""
    image = Image.fromarray(getattr(photos, name)()).convert("RGB")
    image.thumbnail((400, 400))
    image.save(path, quality=95)
    return image.size


@pytest.fixture
def phrasecut_folder(tmp_path: Path) -> Path:
    """Three photos in PhraseCut's layout, a phrase or two each, in every split."""
    folder = tmp_path / "phrasecut"
    (folder / "images").mkdir(parents=True)
    sizes = []
    for number, name in enumerate(PHOTOS):
        width, height = write_photo(name, folder / f"images/{number}.jpg")
        sizes.append({"image_id": number, "width": width, "height": height})
    (folder / "image_data_split3000.json").write_text(json.dumps(sizes))
    for split in ("train", "val", "test"):
        tasks = [
            {"task_id": f"{number}__{phrase}", "image_id": number, "phrase": phrase, "Polygons": [TRIANGLE]}
            for number in range(len(PHOTOS))
            for phrase in (f"the {split} thing", "left part")
        ]
        (folder / f"refer_{split}.json").write_text(json.dumps(tasks))
    return folder


@pytest.fixture
def garments_folder(tmp_path: Path) -> Path:
    """Three photos in the folder layout."""
    folder = tmp_path / "folder"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    lines = []
    for number, name in enumerate(PHOTOS):
        width, height = write_photo(name, folder / f"images/{name}.jpg")
        for split in ("train", "test"):
            for part, phrase in enumerate(("upper half", "lower half")):
                mask = np.zeros((height, width), np.uint8)
                mask[part * height // 2 :][: height // 2] = 255
                key = f"masks/{number}-{split}-{part}.png"
                Image.fromarray(mask).save(folder / key)
                lines.append(
                    {
                        "image": f"images/{name}.jpg",
                        "mask": key,
                        "phrase": f"{split} {phrase}",
                        "split": split,
                    }
                )
    (folder / "phrases.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def test_phrasecut_layout(
    ray_here: None, phrasecut_folder: Path, tmp_path: Path, miniature_ldm: Path
) -> None:
    arguments = precomputed("photos_phrasecut", phrasecut_folder, tmp_path / "run", miniature_ldm)
    assert evaluated(arguments, tmp_path / "run") == 6


def test_folder_layout(ray_here: None, garments_folder: Path, tmp_path: Path, miniature_ldm: Path) -> None:
    precomputed("fashion_folder", garments_folder, tmp_path / "run", miniature_ldm)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["photos_phrasecut", "fashion_folder"])
def test_a_slice_of_the_shared_photos(
    name: str, ray_here: None, shared_data: Path, tmp_path: Path, miniature_ldm: Path
) -> None:
    output = tmp_path / "run"
    arguments = precomputed(name, shared_data / name, output, miniature_ldm, "data.limit=8")
    assert evaluated(arguments, output) == 8
