"""PhraseCut's layout, on a small one made here and on the shared photos."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ldznet.errors import DataFault, UserError
from pipeline.datasets.phrasecut import EXCLUDED_IMAGES, PhraseCutDataset
from pipeline.datasets.sample import load_image
from pipeline.object_store.files import FileStore

SHARED = Path(__file__).resolve().parents[4].parent / "shared" / "data" / "photos_phrasecut"


def _task(image_id: Any = 7, **changes: Any) -> dict[str, Any]:
    polygons = [[[[1, 1], [4, 1], [4, 3], [1, 3]]], [[[6, 5], [8, 5], [8, 6]], [[9, 0], [9, 1]]]]
    return {
        "task_id": f"{image_id}__0",
        "image_id": image_id,
        "ann_ids": [1, 2],
        "instance_boxes": [[1, 1, 4, 3], [6, 5, 3, 2]],
        "Polygons": polygons,
        "phrase": "two boxes",
        "phrase_structure": {"name": "boxes"},
        **changes,
    }


def _write(
    root: Path, tasks: list[Any], split: str = "val", size: tuple[int, int] = (10, 8)
) -> PhraseCutDataset:
    (root / "images").mkdir(exist_ok=True)
    Image.new("L", (10, 8)).save(root / "images" / "7.jpg")
    sizes = [{"image_id": 7, "width": size[0], "height": size[1], "split": split}]
    (root / "image_data_split3000.json").write_text(json.dumps(sizes))
    (root / f"refer_{split}.json").write_text(json.dumps(tasks))
    return PhraseCutDataset(store=FileStore(root=root))


def test_a_task_is_a_sample_with_the_union_of_its_polygons(tmp_path: Path) -> None:
    dataset = _write(tmp_path, [_task()])
    (sample,) = dataset.samples("val")
    assert (sample.image_id, sample.label_id, sample.image) == ("7", "7__0", "images/7.jpg")
    image = load_image(sample, dataset.store.get)
    wanted = np.zeros((8, 10), dtype=np.bool_)
    wanted[1:4, 1:5] = wanted[5, 6:9] = wanted[6, 7:9] = wanted[0:2, 9] = True
    mask = sample.mask.decode(dataset.store.get, width=image.width, height=image.height)
    assert mask[~wanted].sum() == 0
    for part in (mask[1:4, 1:5], mask[5, 6:9], mask[0:2, 9]):
        assert part.all()


def test_a_photo_of_another_size_than_annotated_is_a_fault(tmp_path: Path) -> None:
    dataset = _write(tmp_path, [_task()], size=(10, 9))
    (sample,) = dataset.samples("val")
    with pytest.raises(DataFault, match="annotated for 10 x 9, the image is 10 x 8"):
        sample.mask.decode(dataset.store.get, width=10, height=8)


def test_excluded_images_are_left_out(tmp_path: Path) -> None:
    assert len(EXCLUDED_IMAGES) == 17
    dataset = _write(tmp_path, [_task(image_id) for image_id in sorted(EXCLUDED_IMAGES)] + [_task()])
    assert [sample.image_id for sample in dataset.samples("val")] == ["7"]


def test_splits_are_those_whose_files_are_there(tmp_path: Path) -> None:
    _write(tmp_path, [_task()], "miniv")
    dataset = _write(tmp_path, [_task(), _task()], "train")
    assert dataset.splits() == ("train", "miniv")
    assert [sample.label_id for sample in dataset.samples("train")] == ["7__0", "7__0#2"]
    with pytest.raises(UserError, match="no split 'test': it has train, miniv"):
        next(dataset.samples("test"))


@pytest.mark.parametrize(
    ("tasks", "reason"),
    [
        ([_task(), _task("7/../../x")], r'element 2: "image_id" must be int, not str'),
        ([_task(phrase=None)], '"phrase" must be str'),
        ([{"image_id": 7}], '"task_id" is missing'),
        ([_task(Polygons=[3])], "list of instances"),
        ([_task(Polygons=[[[1, 2, 3]]])], "not a list of"),
        ([3], "a JSON object is expected"),
        ([], "has no phrases"),
        ({"tasks": 1}, "has no phrases"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, tasks: Any, reason: str) -> None:
    dataset = _write(tmp_path, tasks)
    with pytest.raises(UserError, match=reason) as caught:
        list(dataset.samples("val"))
    assert "refer_val.json" in str(caught.value)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing or empty"):
        PhraseCutDataset(store=FileStore(root=tmp_path / "none"))
    (tmp_path / "refer_val.json").write_text("[]")
    with pytest.raises(UserError, match=r"has no image_data_split3000\.json: PhraseCut has"):
        PhraseCutDataset(store=FileStore(root=tmp_path))


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared photos are not beside the checkout")
def test_the_shared_photos() -> None:
    store = FileStore(root=SHARED)
    dataset = PhraseCutDataset(store=store)
    assert dataset.splits() == ("train", "val", "test", "miniv")
    samples = {split: list(dataset.samples(split)) for split in dataset.splits()}
    assert {split: len(those) for split, those in samples.items()} == {
        "train": 267,
        "val": 40,
        "test": 24,
        "miniv": 18,
    }
    assert len({one.image_id for those in samples.values() for one in those}) == 129  # of 138
    tasks = json.loads((SHARED / "refer_test.json").read_text())
    for task, sample in zip(tasks, samples["test"], strict=True):
        image = load_image(sample, store.get)
        mask = sample.mask.decode(store.get, width=image.width, height=image.height)
        # PhraseCut's rule, written out: each polygon on its own canvas, corners cut to whole pixels.
        wanted = np.zeros((image.height, image.width))
        for polygon in (polygon for instance in task["Polygons"] for polygon in instance):
            canvas = Image.new("L", image.size, 0)
            ImageDraw.Draw(canvas).polygon([(int(x), int(y)) for x, y in polygon], outline=1, fill=1)
            wanted += np.asarray(canvas)
        np.testing.assert_array_equal(mask, wanted > 0)
