import hashlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ldznet.errors import UserError
from pipeline.scenes.config import SceneCounts, ScenesConfig
from pipeline.scenes.scene import compose_scene
from pipeline.scenes.writing import describe_scenes, write_scenes

COUNTS = SceneCounts(train=3, val=1, test=2, foreign_train=1, foreign_val=1, foreign=2, held_out=1)
CONFIG = ScenesConfig(size=64, nouns=60, held_out_nouns=10, counts=COUNTS)
ROOT = pathlib.Path(__file__).parents[4]


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_folder_is_what_its_list_says(tmp_path):
    told = []
    written = write_scenes(
        tmp_path / "scenes", CONFIG, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(done, 11) for done in range(1, 12)]
    records = [json.loads(line) for line in (tmp_path / "scenes" / "phrases.jsonl").open()]
    assert len(records) == written.phrases
    assert {record["split"] for record in records} == set(SceneCounts.model_fields)
    for record in records:
        foreign = record["split"].startswith("foreign")
        assert (record["style"] == "fluent-emoji-flat") == foreign
        assert record["phrase"].startswith("the ")
        with Image.open(written.folder / record["image"]) as image:
            assert image.size == (64, 64)
        with Image.open(written.folder / record["mask"]) as mask:
            pixels = np.asarray(mask)
        assert pixels.shape == (64, 64)
        assert set(np.unique(pixels)) == {0, 255}
        assert (pixels > 0).mean() == pytest.approx(record["area"], abs=1e-5)
    listed = {record["image"] for record in records} | {record["mask"] for record in records}
    assert listed | {"scenes.json", "phrases.jsonl"} == set(contents(written.folder))
    told = json.loads((written.folder / "scenes.json").read_text())
    assert told["digest"] == written.digest
    assert ScenesConfig.model_validate(told["config"]) == CONFIG


def test_files_hold_what_compose_scene_gives(tmp_path):
    written = write_scenes(tmp_path / "scenes", CONFIG)
    scene = compose_scene(CONFIG, split="test", index=1)
    for number, phrase in enumerate(scene.phrases):
        with Image.open(written.folder / "masks" / f"test_00001_{number:02d}.png") as mask:
            assert np.array_equal(np.asarray(mask) > 0, phrase.mask)
    with Image.open(written.folder / "images" / "test_00001.jpg") as image:
        assert np.abs(np.asarray(image).astype(int) - scene.image).mean() < 4


def test_same_bytes_in_another_process_with_other_hashes(tmp_path):
    write_scenes(tmp_path / "here", CONFIG)
    script = (
        "import pathlib, sys; from pipeline.scenes.config import ScenesConfig; "
        "from pipeline.scenes.writing import write_scenes; "
        "write_scenes(pathlib.Path(sys.argv[1]), ScenesConfig.model_validate_json(sys.argv[2]))"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "there"), CONFIG.model_dump_json()],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        timeout=120,
    )
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


def test_again_does_nothing_and_says_so(tmp_path, caplog):
    first = write_scenes(tmp_path / "scenes", CONFIG)
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    with caplog.at_level("INFO"):
        again = write_scenes(tmp_path / "scenes", CONFIG)
    assert again.reused
    assert not first.reused
    assert (again.phrases, again.digest) == (first.phrases, first.digest)
    assert before == {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    assert "nothing to do" in caplog.text


def test_interrupted_writing_is_unfinished_and_completed(tmp_path):
    class Killed(Exception):  # noqa: N818 - stands for the process's end
        pass

    def kill(done, total):
        if done == 4:
            raise Killed

    whole = write_scenes(tmp_path / "whole", CONFIG)
    with pytest.raises(Killed):
        write_scenes(tmp_path / "scenes", CONFIG, progress=kill)
    assert not (tmp_path / "scenes" / "phrases.jsonl").exists()
    torn = next((tmp_path / "scenes" / "images").iterdir())
    torn.write_bytes(torn.read_bytes()[:100])
    assert not write_scenes(tmp_path / "scenes", CONFIG).reused
    assert contents(tmp_path / "scenes") == contents(whole.folder)


def test_other_folders_are_refused_untouched(tmp_path):
    written = write_scenes(tmp_path / "scenes", CONFIG)
    before = contents(written.folder)
    with pytest.raises(UserError, match="another configuration"):
        write_scenes(written.folder, CONFIG.model_copy(update={"seed": 9}))
    assert contents(written.folder) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="not empty"):
        write_scenes(tmp_path / "mine", CONFIG)
    assert list(contents(tmp_path / "mine")) == ["letter.txt"]
    with pytest.raises(UserError, match="is a file"):
        write_scenes(tmp_path / "mine" / "letter.txt", CONFIG)
    (written.folder / "scenes.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        write_scenes(written.folder, CONFIG)


def test_digest_changes_with_what_decides_the_scenes():
    digests = {
        describe_scenes(config)["digest"]
        for config in (CONFIG, CONFIG.model_copy(update={"seed": 1}), CONFIG.model_copy(update={"size": 80}))
    }
    assert len(digests) == 3


@pytest.mark.parametrize(
    "asked",
    [
        {"phrase_kinds": ("group",), "min_objects": 1, "max_objects": 1},
        {"phrase_kinds": ("size",), "repeat": 0},
        {"min_objects": 8, "max_objects": 8, "min_scale": 0.9, "max_scale": 1},
    ],
)
def test_scenes_that_cannot_be_are_refused_before_the_folder_is_claimed(tmp_path, asked):
    config = ScenesConfig(size=64, photos=0, counts=SceneCounts(train=3, val=0, test=0, foreign=0), **asked)
    with pytest.raises(UserError, match="no scene of the split train came out right"):
        write_scenes(tmp_path / "data", config)
    assert not (tmp_path / "data").exists()
