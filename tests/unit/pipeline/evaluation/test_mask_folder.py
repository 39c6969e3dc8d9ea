"""Masks by other systems: found by name, read by kind, refused where they are none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldznet.errors import UserError
from pipeline.evaluation.mask_folder import MaskFolder, file_stem, holds_masks

FACTS = {"label_id": "masks/7.png:ab12", "image_id": "images/7.jpg", "phrase": "the cat"}
KEY = "0" * 32
MASK = np.arange(12).reshape(3, 4) > 5


def read(folder: Path, set_name: str = "test") -> Any:
    return MaskFolder(folder).read(set_name, key=KEY, facts=FACTS)


def write_png(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


def test_a_labels_id_becomes_one_plain_file_name() -> None:
    assert file_stem("masks/7.png:ab12") == "masks%2F7.png%3Aab12"
    assert file_stem("2406949__3") == "2406949__3"
    assert "/" not in file_stem("../../etc/passwd")


@pytest.mark.parametrize("place", ["test/KEY.png", "test/LABEL.png", "KEY.png", "LABEL.png"])
def test_a_mask_is_found_by_key_or_label_in_the_sets_folder_or_above(place: str, tmp_path: Path) -> None:
    path = tmp_path / place.replace("KEY", KEY).replace("LABEL", file_stem(FACTS["label_id"]))
    write_png(path, MASK)
    np.testing.assert_array_equal(read(tmp_path), MASK)
    assert holds_masks(tmp_path)


def test_the_sets_own_folder_comes_first(tmp_path: Path) -> None:
    write_png(tmp_path / f"{KEY}.png", MASK)
    write_png(tmp_path / "test" / f"{KEY}.png", ~MASK)
    np.testing.assert_array_equal(read(tmp_path), ~MASK)
    np.testing.assert_array_equal(read(tmp_path, "val"), MASK)
    assert MaskFolder(tmp_path).has("test")
    assert not MaskFolder(tmp_path).has("val")


@pytest.mark.parametrize(
    "pixels", [MASK, MASK.astype(np.uint8), MASK.astype(np.uint8) * 255, MASK.astype(np.uint16) * 7]
)
def test_non_zero_pixels_are_the_phrases(pixels: np.ndarray, tmp_path: Path) -> None:
    write_png(tmp_path / f"{KEY}.png", pixels)
    np.testing.assert_array_equal(read(tmp_path), MASK)


@pytest.mark.parametrize("kind", [np.bool_, np.uint8, np.int64, np.float16, np.float32, np.float64])
def test_arrays_are_masks_or_probabilities_by_their_type(kind: type, tmp_path: Path) -> None:
    np.save(tmp_path / f"{KEY}.npy", MASK.astype(kind))
    folder = MaskFolder(tmp_path)
    found = folder.read("test", key=KEY, facts=FACTS)
    soft = np.issubdtype(kind, np.floating)
    assert found.dtype == (np.float32 if soft else np.bool_)
    assert folder.binary == (not soft)
    np.testing.assert_array_equal(found, MASK)


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.full((3, 4), 1.5), "must lie in"),
        (np.full((3, 4), np.nan), "must lie in"),
        (np.zeros((1, 3, 4)), "H,W is expected"),
        (np.zeros((0, 4)), "H,W is expected"),
        (np.zeros((3, 4), complex), "not complex128"),
        (np.array([[None]], dtype=object), "allow_pickle=False"),
    ],
)
def test_other_arrays_are_refused_by_name(array: np.ndarray, told: str, tmp_path: Path) -> None:
    np.save(tmp_path / f"{KEY}.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match=told) as error:
        read(tmp_path)
    assert f"{KEY}.npy" in str(error.value)


@pytest.mark.parametrize("suffix", [".npy", ".png"])
@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x05\x06" + bytes(18)])
def test_files_that_are_none_are_refused(suffix: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / f"{KEY}{suffix}").write_bytes(content)
    with pytest.raises(UserError, match=f"{KEY}{suffix}"):
        read(tmp_path)


def test_a_missing_mask_is_named_with_the_file_that_it_should_be_in(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"'the cat' about images/7.jpg: test/masks%2F7\.png%3Aab12\.png or \.npy"
    ):
        read(tmp_path)
    assert not holds_masks(tmp_path)
