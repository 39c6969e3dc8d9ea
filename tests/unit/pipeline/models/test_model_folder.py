"""Model folders on a store: whole or not at all, the best one alone."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.models.folder import download_model, upload_model
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore


def model(folder: Path, weights: bytes, **others: str) -> Path:
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(weights)
    for name, text in {"config.json": "{}", **others}.items():
        (folder / name).write_text(text)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def older_seal(url: str) -> None:
    """As versions before this one wrote it."""
    store = open_store(url)
    seal = json.loads(store.get("model.json"))
    del seal["digest"]
    store.put("model.json", json.dumps(seal).encode())


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


def test_a_folder_that_holds_the_model_is_left_as_it_is(tmp_path: Path) -> None:
    """So that scores in its card, and its origin, outlive another `train`."""
    url, got = str(tmp_path / "store"), tmp_path / "got"
    told = {"README.md": "not scored yet"}
    upload_model(model(tmp_path / "made", b"1", **told), url=url, facts={"step": 5})
    download_model(url, got)
    assert (got / "README.md").read_text() == "not scored yet"
    (got / "README.md").write_text("mIoU 57.0")
    (got / "provenance.json").write_text('{"run_id": "1"}')
    kept = contents(got)
    assert download_model(url, got) == {"step": 5}
    assert contents(got) == kept
    older_seal(url)
    assert download_model(url, got) == {"step": 5}
    assert contents(got) == kept
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_older_seal_is_read(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    upload_model(model(tmp_path / "made", b"1"), url=url, facts={"step": 5})
    older_seal(url)
    assert download_model(url, tmp_path / "got") == {"step": 5}
    assert contents(tmp_path / "got") == contents(tmp_path / "made")


def test_nothing_of_another_model_stays_in_the_folder(tmp_path: Path) -> None:
    url, got = str(tmp_path / "store"), tmp_path / "got"
    model(got, b"1", **{"more.safetensors": "1", "provenance.json": "{}", "prediction.json": "1"})
    (got / "inside").mkdir()
    upload_model(model(tmp_path / "made", b"2"), url=url, facts={"step": 5})
    download_model(url, got)
    assert contents(got) == contents(tmp_path / "made")
    assert got.stat().st_mode == (tmp_path / "made").stat().st_mode, "others may read it"


def test_a_damaged_folder_is_made_whole(tmp_path: Path) -> None:
    url, got = str(tmp_path / "store"), tmp_path / "got"
    upload_model(model(tmp_path / "made", b"1"), url=url, facts={"step": 5})
    download_model(url, got)
    (got / "weights.safetensors").write_bytes(b"")
    download_model(url, got)
    assert contents(got) == contents(tmp_path / "made")


def test_a_link_goes_on_leading_to_the_model(tmp_path: Path) -> None:
    url, disk = str(tmp_path / "store"), tmp_path / "disk"
    disk.mkdir()
    model(disk / "model", b"1")
    (tmp_path / "got").symlink_to(disk / "model")
    upload_model(model(tmp_path / "made", b"2"), url=url, facts={"step": 5})
    download_model(url, tmp_path / "got")
    assert (tmp_path / "got").readlink() == disk / "model"
    assert contents(disk / "model") == contents(tmp_path / "made")


def test_several_fetch_at_once(tmp_path: Path) -> None:
    url, got = str(tmp_path / "store"), tmp_path / "models" / "got"
    upload_model(model(tmp_path / "made", b"1"), url=url, facts={"step": 5})
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: download_model(url, got), range(40))) == [{"step": 5}] * 40
    assert contents(got) == contents(tmp_path / "made")
    assert list(got.parent.iterdir()) == [got]


# Each child is killed before another one of its steps on the file system.
KILLED_ANYWHERE = """
import itertools, os, shutil, signal, sys
from pathlib import Path
from pipeline.models.folder import download_model

url, first, got = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}

def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.exists() else None

def fetch_until(step):
    count = itertools.count()
    def hook(event, _):
        if event in STEPS and next(count) == step:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    download_model(url, got)
    os._exit(0)

download_model(url, got)
second = contents(got)
for step in itertools.count():
    shutil.rmtree(got)
    shutil.copytree(first, got)
    child = os.fork()
    if not child:
        fetch_until(step)
    status = os.waitpid(child, 0)[1]
    found = contents(got)
    told = {repr(contents(first)): "first", repr(second): "second", "None": "none"}.get(repr(found), found)
    download_model(url, got)
    assert contents(got) == second, step
    assert [path.name for path in got.parent.iterdir()] == [got.name], step
    print(told)
    if status == 0:
        break
"""


def test_killed_anywhere_one_model_is_there_or_the_other(tmp_path: Path) -> None:
    """With the configuration of the one and the weights of the other it would pass for a model."""
    url = str(tmp_path / "store")
    first = model(tmp_path / "first", b"1", **{"config.json": "1", "prediction.json": "1"})
    second = model(tmp_path / "second", b"2", **{"config.json": "2", "prediction.json": "2"})
    upload_model(second, url=url, facts={"step": 5})
    done = subprocess.run(
        [sys.executable, "-c", KILLED_ANYWHERE, url, str(first), str(tmp_path / "models" / "got")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    states = done.stdout.splitlines()
    assert list(dict.fromkeys(states)) == ["first", "none", "second"]
    assert len(states) > 10


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
