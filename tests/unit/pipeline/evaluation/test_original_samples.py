"""Originals behind a cached set: found by their names, or by their content where those changed."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldznet.errors import UserError
from ldznet.images import decode_image
from pipeline.datasets.opening import DataConfig, open_dataset
from pipeline.evaluation.original_samples import OriginalSamples
from pipeline.views import apply_to_mask, squash_view


@pytest.fixture
def data(small_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_data, tmp_path / "data"))


@pytest.fixture
def config(data: Path) -> DataConfig:
    return DataConfig(format="folder", root=str(data))


def cached(config: DataConfig, number: int) -> tuple[dict[str, Any], Any]:
    """Facts and mask of a sample, as a cache of `squash` views keeps them."""
    dataset = open_dataset(config)
    sample = list(dataset.samples("train"))[number]
    body = dataset.store.get(sample.image)
    photo = decode_image(body)
    view = squash_view(width=photo.width, height=photo.height, size=64)
    mask = sample.mask.decode(dataset.store.get, width=photo.width, height=photo.height)
    facts = {
        "label_id": sample.label_id,
        "phrase": sample.phrase,
        "image_digest": hashlib.sha256(body).hexdigest(),
        "view": {"left": 0, "top": 0, "width": view.width, "height": view.height, "size": 64},
    }
    return facts, (mask, apply_to_mask(mask, view), photo)


def rename(data: Path) -> None:
    (data / "masks").rename(data / "truths")
    (data / "images").rename(data / "photos")
    lines = (data / "phrases.jsonl").read_text().replace("masks/", "truths/").replace("images/", "photos/")
    (data / "phrases.jsonl").write_text(lines)


@pytest.mark.parametrize("renamed", [False, True])
def test_mask_and_photo_are_those_of_the_data_set(data: Path, config: DataConfig, renamed: bool) -> None:
    facts, (mask, seen, photo) = cached(config, 7)
    if renamed:
        rename(data)
    originals = OriginalSamples(data=config, split="train")
    assert np.array_equal(originals.mask(facts, seen), mask)
    assert originals.photo(facts).tobytes() == photo.tobytes()


def test_of_two_alike_the_mask_decides(data: Path, config: DataConfig) -> None:
    facts, (mask, seen, _) = cached(config, 7)
    lines = [json.loads(line) for line in (data / "phrases.jsonl").read_text().splitlines()]
    other = lines[8] | {"phrase": facts["phrase"]}  # another box of the same photo, under the same phrase
    (data / "phrases.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in [other, *lines]))
    rename(data)
    assert np.array_equal(OriginalSamples(data=config, split="train").mask(facts, seen), mask)


def test_what_is_another_now_is_told(data: Path, config: DataConfig) -> None:
    facts, (_, seen, _) = cached(config, 7)
    with pytest.raises(UserError, match="is another one; run `ldznet precompute` again"):
        OriginalSamples(data=config, split="train").mask(facts, ~seen)
    with pytest.raises(UserError, match="there is no"):
        OriginalSamples(data=config, split="train").mask(facts | {"phrase": "a green box"}, seen)
    photo = data / "images" / "2.png"
    photo.write_bytes((data / "images" / "3.png").read_bytes())
    with pytest.raises(UserError, match="is another photo"):
        OriginalSamples(data=config, split="train").photo(facts)
    rename(data)
    with pytest.raises(UserError, match="nor another such on that photo"):
        OriginalSamples(data=config, split="train").mask(facts, seen)
