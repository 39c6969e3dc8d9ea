"""Model folders on a store: whole or not at all, the best one alone."""

from pathlib import Path

import pytest

from pipeline.models.folder import download_model, upload_model
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore


def model(folder: Path, weights: bytes) -> Path:
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(weights)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_better_one_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    upload_model(model(tmp_path / "first", b"1"), url=url, facts={"step": 5})
    upload_model(model(tmp_path / "second", b"2"), url=url, facts={"step": 10, "miou": 0.5})
    assert download_model(url, tmp_path / "got") == {"step": 10, "miou": 0.5}
    assert (tmp_path / "got/weights.safetensors").read_bytes() == b"2"
    assert {info.key.split("/")[0] for info in open_store(url).list()} == {"00000010", "model.json"}


def test_one_step_uploaded_again_stays(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    for name in ("first", "second"):
        upload_model(model(tmp_path / name, name.encode()), url=url, facts={"step": 5})
    download_model(url, tmp_path / "got")
    assert (tmp_path / "got/weights.safetensors").read_bytes() == b"second"


def test_killed_on_its_way_the_one_before_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "store")
    upload_model(model(tmp_path / "first", b"1"), url=url, facts={"step": 5})
    kind = type(open_store(url))
    real = kind.put

    def killed(self: ObjectStore, key: str, body: bytes | Path) -> None:
        if key.startswith("00000010/w"):
            raise KeyboardInterrupt
        real(self, key, body)

    monkeypatch.setattr(kind, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        upload_model(model(tmp_path / "second", b"2"), url=url, facts={"step": 10})
    assert download_model(url, tmp_path / "got") == {"step": 5}
