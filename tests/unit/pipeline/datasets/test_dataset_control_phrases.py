"""Controls: everybody has another one's phrase, or one that tells nothing; nothing else has changed."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ldznet.errors import UserError
from pipeline.datasets.hidden_phrases import HIDDEN
from pipeline.datasets.opening import DataConfig, open_dataset
from pipeline.datasets.shuffled_phrases import _dealt

PHRASES = ["cat", "dog", "cat", "red car", "tree", "dog", "cat", "sky"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    lines = []
    for number, phrase in enumerate(PHRASES):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / "masks" / f"{number}.png")
        lines.append(
            json.dumps(
                {
                    "image": f"images/{number}.png",
                    "mask": f"masks/{number}.png",
                    "phrase": phrase,
                    "split": "val",
                }
            )
        )
    (tmp_path / "phrases.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_phrases_change_places_and_nothing_else_does(data: Path) -> None:
    own = list(open_dataset(DataConfig(format="folder", root=str(data))).samples("val"))
    config = DataConfig(format="folder", root=str(data), phrases="shuffled")
    dealt = list(open_dataset(config).samples("val"))
    assert [sample.image for sample in dealt] == [sample.image for sample in own]
    assert [sample.mask for sample in dealt] == [sample.mask for sample in own]
    assert Counter(sample.phrase for sample in dealt) == Counter(PHRASES)
    assert all(mine.phrase != theirs.phrase for mine, theirs in zip(own, dealt, strict=True))
    assert dealt == list(open_dataset(config).samples("val"))


def test_hidden_phrases_tell_nothing_and_nothing_else_changes(data: Path) -> None:
    own = list(open_dataset(DataConfig(format="folder", root=str(data))).samples("val"))
    hidden = open_dataset(DataConfig(format="folder", root=str(data), phrases="hidden"))
    blind = list(hidden.samples("val"))
    assert {sample.phrase for sample in blind} == {HIDDEN}
    assert [replace(sample, phrase=one.phrase) for sample, one in zip(blind, own, strict=True)] == own
    assert hidden.name == "folder (phrases hidden)"


def test_the_limit_comes_first(data: Path) -> None:
    config = DataConfig(format="folder", root=str(data), phrases="shuffled", limit=4)
    dealt = [sample.phrase for sample in open_dataset(config).samples("val")]
    assert Counter(dealt) == Counter(PHRASES[:4])


@given(st.lists(st.sampled_from("abcdef"), max_size=40), st.integers(0, 5))
def test_a_permutation_that_gives_nobody_his_own(phrases: list[str], seed: int) -> None:
    most = max(Counter(phrases).values(), default=0)
    if 2 * most > len(phrases):
        with pytest.raises(UserError, match="cannot be shuffled"):
            _dealt(phrases, seed=seed, split="val")
        return
    dealt = _dealt(phrases, seed=seed, split="val").tolist()
    assert sorted(dealt) == list(range(len(phrases)))
    assert all(phrases[place] != phrases[other] for place, other in enumerate(dealt))
