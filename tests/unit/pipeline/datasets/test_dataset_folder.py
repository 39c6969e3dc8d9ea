"""The folder layout, on a small one made here and on the shared street photos."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldznet.errors import DataFault, UserError
from pipeline.datasets.folder import FolderDataset
from pipeline.datasets.sample import check_sample, load_image
from pipeline.object_store.files import FileStore

SHARED = Path(__file__).resolve().parents[4].parent / "shared" / "data" / "fashion_folder"


def _write_folder(root: Path, lines: list[Any]) -> FileStore:
    (root / "images").mkdir()
    (root / "masks").mkdir()
    photo = np.zeros((8, 12, 3), dtype=np.uint8)
    mask = np.zeros((8, 12), dtype=np.uint8)
    mask[2:4, 3:6] = 255
    Image.fromarray(photo).save(root / "images" / "a.png")
    Image.fromarray(mask).save(root / "masks" / "a_0.png")
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (root / "phrases.jsonl").write_text(text)
    return FileStore(root=root)


def _line(**changes: Any) -> dict[str, Any]:
    return {"image": "images/a.png", "mask": "masks/a_0.png", "phrase": "a box", **changes}


def test_lines_become_samples_that_decode(tmp_path: Path) -> None:
    store = _write_folder(
        tmp_path, [_line(split="train"), _line(phrase="b", split="val", licence="CC0"), _line()]
    )
    dataset = FolderDataset(store=store)
    assert dataset.splits() == ("all", "train", "val")
    (sample,) = dataset.samples("train")
    assert (sample.image_id, sample.phrase, sample.split) == ("images/a.png", "a box", "train")
    image = load_image(sample, store.get)
    mask = sample.mask.decode(store.get, width=image.width, height=image.height)
    assert mask.sum() == 6
    assert [one.split for one in dataset.samples("all")] == ["all"]


def test_label_ids_stay_when_lines_move_and_are_one_of_a_kind(tmp_path: Path) -> None:
    lines = [_line(), _line(phrase="another"), _line(), _line(mask="masks/b.png")]
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first = [
        one.label_id for one in FolderDataset(store=_write_folder(tmp_path / "one", lines)).samples("all")
    ]
    second = [
        one.label_id
        for one in FolderDataset(store=_write_folder(tmp_path / "two", lines[::-1])).samples("all")
    ]
    assert len(set(first)) == 4
    assert set(first) == set(second)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{broken", r"phrases\.jsonl:2: not JSON"),
        ({"image": "images/a.png", "phrase": "x"}, r'phrases\.jsonl:2: "mask" is missing'),
        (_line(phrase=3), r'phrases\.jsonl:2: "phrase" must be str, not int'),
        (_line(split=3), r'phrases\.jsonl:2: "split" must be str or NoneType, not int'),
        (_line(image="../secret.jpg"), r'phrases\.jsonl:2: "image" must be a plain path'),
        (_line(mask="/etc/shadow"), r'phrases\.jsonl:2: "mask" must be a plain path'),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: Any, reason: str) -> None:
    dataset = FolderDataset(store=_write_folder(tmp_path, [_line(), line]))
    with pytest.raises(UserError, match=reason):
        list(dataset.samples("all"))


def test_reading_is_lazy(tmp_path: Path) -> None:
    dataset = FolderDataset(store=_write_folder(tmp_path, [_line(), "{broken"]))
    assert next(dataset.samples("all")).phrase == "a box"


@pytest.mark.parametrize("phrase", ["", "  \n", "a\x00b", "\ud800"])
def test_an_empty_phrase_is_yielded_and_is_a_fault(tmp_path: Path, phrase: str) -> None:
    (sample,) = FolderDataset(store=_write_folder(tmp_path, [_line(phrase=phrase)])).samples("all")
    with pytest.raises(DataFault, match="the phrase"):
        check_sample(sample)


def test_missing_and_damaged_photos_are_faults_of_their_samples(tmp_path: Path) -> None:
    store = _write_folder(tmp_path, [_line(image="images/none.png"), _line(image="images/bad.png")])
    (tmp_path / "images" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    missing, damaged = FolderDataset(store=store).samples("all")
    with pytest.raises(DataFault, match=r"images/none\.png is missing"):
        load_image(missing, store.get)
    with pytest.raises(DataFault, match=r"images/bad\.png: .*image file"):
        load_image(damaged, store.get)


def test_a_split_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    dataset = FolderDataset(store=_write_folder(tmp_path, [_line(split="train"), _line(split="test")]))
    with pytest.raises(UserError, match="no phrases in split 'val': it has test, train"):
        list(dataset.samples("val"))


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    for root in (tmp_path / "missing", tmp_path):
        with pytest.raises(UserError, match="is missing or empty: give the folder that holds"):
            FolderDataset(store=FileStore(root=root))
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(UserError, match=r"has no phrases\.jsonl: the folder layout has"):
        FolderDataset(store=FileStore(root=tmp_path))
    (tmp_path / "phrases.jsonl").write_text("")
    with pytest.raises(UserError, match="the file has no lines"):
        list(FolderDataset(store=FileStore(root=tmp_path)).samples("train"))


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared street photos are not beside the checkout")
def test_the_street_photos() -> None:
    store = FileStore(root=SHARED)
    dataset = FolderDataset(store=store)
    assert dataset.splits() == ("test", "train")
    samples = [sample for split in dataset.splits() for sample in dataset.samples(split)]
    assert len(samples) == 1564
    assert len({sample.image_id for sample in samples}) == 260
    assert len({sample.label_id for sample in samples}) == 1564
    for sample in samples[::40]:
        image = load_image(sample, store.get)
        mask = sample.mask.decode(store.get, width=image.width, height=image.height)
        with Image.open(io.BytesIO(store.get(sample.label_id.split(":")[0]))) as file:
            np.testing.assert_array_equal(mask, np.asarray(file) > 0)
