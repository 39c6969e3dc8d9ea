"""Faulty data that is mended: a set that was refused is made, and nothing of its old faults is held against it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ldznet.errors import UserError
from pipeline.cache.manifest import find_manifest, read_left_out
from pipeline.object_store.opening import open_store
from pipeline.recipe_file import load_recipe


@pytest.fixture
def recipe(small_recipe: Callable[..., Path], small_data: Path, tmp_path: Path) -> Path:
    shutil.copytree(small_data, tmp_path / "data")
    view = {"policy": "shared", "size": 64}
    return small_recipe(
        data={"format": "folder", "root": str(tmp_path / "data")},
        sets={"train": {"split": "train", "view": view}},
        cache={"url": str(tmp_path / "cache"), "shard_mebibytes": 1, "max_failed_share": 0.05},
        validate_on=None,
        evaluate={"sets": []},
    )


@pytest.mark.parametrize("mend", ["put back", "taken out of the list"])
def test_a_set_that_was_refused_is_made_when_its_data_is_mended(
    mend: str, recipe: Path, tmp_path: Path, precompute_here: Callable[..., None]
) -> None:
    photo, phrases = tmp_path / "data" / "images" / "3.png", tmp_path / "data" / "phrases.jsonl"
    sound, lines = photo.read_bytes(), phrases.read_text().splitlines(keepends=True)
    photo.write_bytes(sound[: len(sound) // 2])
    with pytest.raises(UserError, match=r"are faulty, more than cache\.max_failed_share=0\.05"):
        precompute_here(recipe)
    if mend == "put back":
        photo.write_bytes(sound)
    else:
        phrases.write_text("".join(line for line in lines if "images/3.png" not in line))
    precompute_here(recipe)
    loaded = load_recipe(recipe)
    manifest = find_manifest(open_store(loaded.cache.url), loaded.request_digest("train"))
    assert manifest is not None
    whole = sum('"train"' in line for line in lines)
    gone = sum('"train"' in line and "images/3.png" in line for line in lines)
    assert manifest.samples == (whole if mend == "put back" else whole - gone)


def test_samples_of_which_all_is_missing_are_counted_one_by_one(
    recipe: Path, tmp_path: Path, precompute_here: Callable[..., None]
) -> None:
    with (tmp_path / "data" / "phrases.jsonl").open("a") as lines:
        for number in range(7):
            gone = {"image": f"images/gone-{number}.png", "mask": f"masks/gone-{number}.png"}
            lines.write(json.dumps({**gone, "phrase": "the red box", "split": "train"}) + "\n")
    with pytest.raises(UserError, match="7 of 43 samples of the set 'train' are faulty"):
        precompute_here(recipe)


def test_a_phrase_that_utf8_cannot_hold_is_left_out(
    recipe: Path, tmp_path: Path, precompute_here: Callable[..., None]
) -> None:
    with (tmp_path / "data" / "phrases.jsonl").open("a") as lines:
        odd = {"image": "images/1.png", "mask": "masks/1-0.png", "phrase": "the \ud83d box", "split": "train"}
        lines.write(json.dumps(odd) + "\n")
    precompute_here(recipe)
    loaded = load_recipe(recipe)
    store = open_store(loaded.cache.url)
    manifest = find_manifest(store, loaded.request_digest("train"))
    assert manifest is not None
    ((_, left_out),) = read_left_out(store, manifest)
    assert left_out.phrase == "the \\ud83d box"
