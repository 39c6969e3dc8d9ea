"""RefCOCO and its kin in the REFER layout, on a small one made here."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldznet.errors import UserError
from pipeline.datasets.refer import ReferDataset
from pipeline.datasets.rle import mask_to_runs, runs_to_text
from pipeline.datasets.sample import load_image
from pipeline.object_store.files import FileStore

WIDTH, HEIGHT = 12, 9


def _ref(ref_id: int, split: str, *phrases: str, **changes: Any) -> dict[str, Any]:
    sentences = [
        {"raw": text.upper(), "sent": text, "sent_id": 10 * ref_id + i, "tokens": text.split()}
        for i, text in enumerate(phrases)
    ]
    return {
        "ref_id": ref_id,
        "ann_id": 100 + ref_id,
        "category_id": 1,
        "file_name": f"COCO_train2014_000000000042_{ref_id}.jpg",
        "image_id": 42,
        "sent_ids": [one["sent_id"] for one in sentences],
        "split": split,
        "sentences": sentences,
        **changes,
    }


def _square() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    mask[2:6, 3:9] = True
    return mask


def _instances() -> dict[str, Any]:
    polygon = [3, 2, 9, 2, 9, 6, 3, 6]
    runs = mask_to_runs(_square())
    segmentations: list[Any] = [
        [polygon, [0, 0, 1, 0, 1, 1, 0, 1]],
        {"size": [HEIGHT, WIDTH], "counts": runs_to_text(runs).decode()},
        {"size": [HEIGHT, WIDTH], "counts": runs.tolist()},
    ]
    annotations = [
        {"id": 101 + i, "image_id": 42, "segmentation": one, "iscrowd": 0, "bbox": [3, 2, 6, 4]}
        for i, one in enumerate(segmentations)
    ]
    return {  # annotations come before images here, as they may
        "info": {"year": 2014},
        "annotations": annotations,
        "images": [
            {"id": 42, "width": WIDTH, "height": HEIGHT, "file_name": "COCO_train2014_000000000042.jpg"}
        ],
        "categories": [{"id": 1, "name": "box"}],
    }


def _write(root: Path, refs: Any, instances: Any = None, protocol: int = 0) -> FileStore:
    (root / "refcoco").mkdir(parents=True)
    (root / "train2014").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "train2014" / "COCO_train2014_000000000042.jpg")
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=protocol))
    (root / "refcoco" / "instances.json").write_text(json.dumps(instances or _instances()))
    return FileStore(root=root)


REFS = [
    _ref(1, "train", "the box", "box on the left"),
    _ref(2, "testA", "other box"),
    _ref(3, "testB", "third"),
]


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_each_expression_is_a_sample(tmp_path: Path, protocol: int) -> None:
    dataset = ReferDataset(store=_write(tmp_path, REFS, protocol=protocol))
    assert dataset.name == "refcoco-unc"
    assert dataset.splits() == ("test", "testA", "testB", "train")
    samples = list(dataset.samples("train"))
    assert [one.phrase for one in samples] == ["the box", "box on the left"]
    assert [one.label_id for one in samples] == ["1_10", "1_11"]
    assert samples[0].image_id == "42"
    assert load_image(samples[0], dataset.store.get).size == (WIDTH, HEIGHT)


def test_polygons_and_both_kinds_of_run_lengths(tmp_path: Path) -> None:
    dataset = ReferDataset(store=_write(tmp_path, REFS))
    wanted = _square()
    for split in ("testA", "testB"):
        (sample,) = dataset.samples(split)
        np.testing.assert_array_equal(
            sample.mask.decode(dataset.store.get, width=WIDTH, height=HEIGHT), wanted
        )
    polygons = next(dataset.samples("train")).mask.decode(dataset.store.get, width=WIDTH, height=HEIGHT)
    wanted[0, 0] = True
    np.testing.assert_array_equal(polygons, wanted)


def test_test_is_test_a_and_test_b(tmp_path: Path) -> None:
    dataset = ReferDataset(store=_write(tmp_path, REFS))
    assert [(one.phrase, one.split) for one in dataset.samples("test")] == [
        ("other box", "test"),
        ("third", "test"),
    ]
    with pytest.raises(UserError, match="no split 'val': it has test, testA, testB, train"):
        next(dataset.samples("val"))


def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "executed"

    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(trace),)

    dataset = ReferDataset(store=_write(tmp_path / "data", [*REFS, Hostile()]))
    for read in (dataset.splits, lambda: next(dataset.samples("train"))):
        with pytest.raises(UserError, match=r"refcoco/refs\(unc\)\.p: the pickle holds GLOBAL"):
            read()
    assert not trace.exists()


@pytest.mark.parametrize(
    ("refs", "reason"),
    [
        ({"a": 1}, "a list of refs is expected, not dict"),
        ([3], "ref 1: a dict is expected"),
        ([{"ref_id": 1}], 'ref 1: "split" is missing'),
        ([_ref(1, "train", "x", image_id="../../x")], '"image_id" must be int, not str'),
        ([_ref(1, "train", "x", sentences=["x"])], '"sentences" must be a list of dicts'),
        ([_ref(1, "train", "x", ann_id=5)], "annotation 5 is not in refcoco/instances.json"),
    ],
)
def test_malformed_refs_are_named(tmp_path: Path, refs: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        list(ReferDataset(store=_write(tmp_path, refs)).samples("train"))


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[1, 2, 3]], "not a list of"),
        ({"size": [1, 2]}, "run lengths must be"),
        ("x", "must be list or dict"),
    ],
)
def test_malformed_annotations_are_named(tmp_path: Path, segmentation: Any, reason: str) -> None:
    instances = _instances()
    instances["annotations"][0]["segmentation"] = segmentation
    with pytest.raises(UserError, match=rf"instances\.json, annotations 1: .*{reason}"):
        list(ReferDataset(store=_write(tmp_path, REFS, instances)).samples("train"))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing or empty"):
        ReferDataset(store=FileStore(root=tmp_path / "none"))
    store = _write(tmp_path, REFS)
    with pytest.raises(UserError, match=r"has no refcocog/refs\(umd\)\.p: REFER has"):
        ReferDataset(store=store, dataset="refcocog", split_by="umd")
    (tmp_path / "refcoco" / "instances.json").unlink()
    with pytest.raises(UserError, match=r"has no refcoco/instances\.json"):
        ReferDataset(store=store)
