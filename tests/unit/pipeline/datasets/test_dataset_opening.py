"""From configuration to a data set."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ldznet.errors import UserError
from pipeline.datasets.opening import DataConfig, ReferConfig, open_dataset

SHARED = Path(__file__).resolve().parents[4].parent / "shared" / "data" / "photos_phrasecut"


def _folder(root: Path) -> str:
    lines = [
        {
            "image": "images/a.png",
            "mask": f"masks/{i}.png",
            "phrase": f"p{i}",
            "split": "train" if i < 4 else "test",
        }
        for i in range(6)
    ]
    (root / "phrases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(root)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "zip"}, "format"),
        ({"root": ""}, "root"),
        ({"rooot": "x"}, "rooot"),
        ({"limit": 0}, "limit"),
        ({"refer": {"dataset": "refcoco"}}, "is for format: refer, not for folder"),
        ({"format": "refer", "refer": {"dataset": "refclef"}}, "dataset"),
        ({"format": "refer", "refer": {"dataset": "refcocog", "split_by": "unc"}}, "use google or umd"),
        ({"format": "refer", "refer": {"split_by": "umd"}}, "use google or unc"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        DataConfig.model_validate({"format": "folder", "root": "data", **changes})


@pytest.mark.parametrize("as_url", [False, True])
def test_paths_and_urls(tmp_path: Path, as_url: bool) -> None:
    root = _folder(tmp_path)
    dataset = open_dataset(
        DataConfig(format="folder", root=Path(root).as_uri() if as_url else root, name="mine")
    )
    assert (dataset.name, dataset.splits()) == ("mine", ("test", "train"))
    assert [one.phrase for one in dataset.samples("test")] == ["p4", "p5"]


def test_splits_are_renamed_and_limited(tmp_path: Path) -> None:
    config = DataConfig(
        format="folder", root=_folder(tmp_path), splits={"val": "test", "train": "train"}, limit=1
    )
    dataset = open_dataset(config)
    assert dataset.splits() == ("val", "train")
    assert [(one.phrase, one.split) for one in dataset.samples("val")] == [("p4", "val")]
    assert [one.phrase for one in dataset.samples("train")] == ["p0"]
    with pytest.raises(UserError, match=r"split 'test' is not among data\.splits: val, train"):
        next(dataset.samples("test"))


def test_a_renamed_split_that_is_not_there(tmp_path: Path) -> None:
    dataset = open_dataset(DataConfig(format="folder", root=_folder(tmp_path), splits={"val": "valid"}))
    with pytest.raises(UserError, match="no phrases in split 'valid': it has test, train"):
        next(dataset.samples("val"))


@pytest.mark.parametrize("form", ["folder", "phrasecut", "refer"])
def test_a_missing_root_is_told_at_once(tmp_path: Path, form: Any) -> None:
    with pytest.raises(UserError, match=r"data folder file:///.*/none is missing or empty"):
        open_dataset(DataConfig(format=form, root=str(tmp_path / "none")))
    assert not (tmp_path / "none").exists()


def test_refer_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "refcocog").mkdir()
    for name in ("refs(umd).p", "instances.json"):
        (tmp_path / "refcocog" / name).write_bytes(b"")
    config = DataConfig(
        format="refer", root=str(tmp_path), refer=ReferConfig(dataset="refcocog", split_by="umd")
    )
    assert open_dataset(config).name == "refcocog-umd"  # nothing is read yet


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared photos are not beside the checkout")
def test_the_shared_photos_through_configuration() -> None:
    dataset = open_dataset(DataConfig(format="phrasecut", root=str(SHARED), splits={"val": "miniv"}))
    assert sum(1 for _ in dataset.samples("val")) == 18
