"""The user's mistakes: one line that names the thing and the mend, exit code 2, and nothing half-written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import cli

Files = dict[str, int]


@pytest.fixture
def refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Runs a command that must be refused; gives its one line."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)  # what is relative would end up here

    def run(*arguments: object) -> str:
        before = files_in(tmp_path)
        capfd.readouterr()
        assert cli.main([str(argument) for argument in arguments]) == 2
        shown = capfd.readouterr()
        assert shown.out == ""
        assert files_in(tmp_path) == before, "something was written"
        lines = shown.err.splitlines()
        assert len(lines) == 1, shown.err
        assert lines[0].startswith("ldznet: ")
        return lines[0]

    return run


def files_in(folder: Path) -> Files:
    return {str(path): path.stat().st_size for path in folder.rglob("*")}


RECIPE_MISTAKES = {
    "misspelt key": ("train.stepz=3", "unknown key 'train.stepz': did you mean 'steps'?"),
    "misspelt section": ("cahce.workers=3", "unknown key 'cahce': did you mean 'cache'?"),
    "wrong type": ("cache.workers=many", "cache.workers: input should be a valid integer"),
    "block out of range": ("features.blocks=[6,17]", "there is no block 17"),
    "timestep out of range": ("sets.train.timesteps.high=1001", "sets.train.timesteps.high: "),
    "no override": ("steps", "'steps' is no override: write it as key=value"),
    "impossible combination": ("train.engine=ddp train.zero_stage=2", "engine=ddp has no ZeRO"),
}


@pytest.mark.parametrize("command", ["precompute", "train", "evaluate"])
@pytest.mark.parametrize("mistake", RECIPE_MISTAKES)
def test_mistakes_in_a_recipe(
    command: str, mistake: str, refused: Callable[..., str], small_recipe: Callable[..., Path]
) -> None:
    overrides, told = RECIPE_MISTAKES[mistake]
    assert told in refused(command, small_recipe(), *overrides.split())


def test_a_recipe_that_is_not_there(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "there is no recipe" in refused("precompute", tmp_path / "none.yaml")


@pytest.mark.parametrize("format_", ["folder", "phrasecut", "refer"])
@pytest.mark.parametrize("state", ["missing", "empty", "other"])
def test_a_data_folder_that_is_none(
    format_: str, state: str, refused: Callable[..., str], small_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    if state != "missing":
        folder.mkdir()
    if state == "other":
        (folder / "holiday.txt").write_text("sun")
    line = refused("precompute", small_recipe(data={"format": format_, "root": str(folder)}))
    assert str(folder) in line


def test_a_split_that_the_data_lacks(refused: Callable[..., str], small_recipe: Callable[..., Path]) -> None:
    line = refused("precompute", small_recipe(), "sets.val.split=vall")
    assert "no phrases in split 'vall': it has train, val" in line


def test_a_line_of_the_data_that_is_no_record(
    refused: Callable[..., str], small_recipe: Callable[..., Path], small_data: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(small_data, tmp_path / "photos"))
    with (folder / "phrases.jsonl").open("a") as file:
        file.write("{not json}\n")
    assert "phrases.jsonl" in refused(
        "precompute", small_recipe(data={"format": "folder", "root": str(folder)})
    )


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_an_ldm_folder_with_a_part_missing(
    part: str,
    refused: Callable[..., str],
    small_recipe: Callable[..., Path],
    miniature_ldm: Path,
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(miniature_ldm, tmp_path / "ldm"))
    shutil.rmtree(folder / part)
    line = refused("precompute", small_recipe(), f"ldm.source={folder}")
    assert f"LDM folder {folder}: the part '{part}' is missing" in line


def test_an_ldm_folder_with_pickle_weights_only(
    refused: Callable[..., str], small_recipe: Callable[..., Path], miniature_ldm: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(miniature_ldm, tmp_path / "ldm"))
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"pickled")
    line = refused("precompute", small_recipe(), f"ldm.source={folder}")
    assert "'unet' has pickle weights only (diffusion_pytorch_model.bin), which are never loaded" in line


def test_an_ldm_folder_that_is_not_there(
    refused: Callable[..., str], small_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    line = refused("precompute", small_recipe(), f"ldm.source={tmp_path}/none")
    assert f"LDM {tmp_path}/none: no such folder" in line


def test_an_ldm_with_fewer_timesteps_than_asked_for(
    refused: Callable[..., str], small_recipe: Callable[..., Path], miniature_ldm: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(miniature_ldm, tmp_path / "ldm"))
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_train_timesteps": 450}))
    line = refused("precompute", small_recipe(), f"ldm.source={folder}")
    assert "sets.train.timesteps.high=500 is out of range: the frozen LDM has 450 timesteps" in line


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_no_features_yet(
    command: str, refused: Callable[..., str], small_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    line = refused(command, small_recipe(), f"evaluate.models=[{folder}]")
    assert "holds no features of the set" in line
    assert "run `ldznet precompute`" in line


def test_weights_chosen_by_what_they_were_trained_on(
    refused: Callable[..., str], small_recipe: Callable[..., Path]
) -> None:
    line = refused("train", small_recipe(), "validate_on=train")
    assert line == "ldznet: validate_on=train is what it trains on: name a set of the val split, or null"


def test_nothing_to_evaluate(refused: Callable[..., str], small_recipe: Callable[..., Path]) -> None:
    assert "nothing to evaluate" in refused("evaluate", small_recipe())


def test_a_cache_that_is_no_place(refused: Callable[..., str], small_recipe: Callable[..., Path]) -> None:
    assert "unknown scheme 'gs'" in refused("precompute", small_recipe(), "cache.url=gs://bucket/cache")


@pytest.mark.parametrize("job", ["scenes", "miniature"])
def test_a_recipe_that_makes_nothing(
    job: str, refused: Callable[..., str], small_recipe: Callable[..., Path]
) -> None:
    assert f"add a section `{job}:`" in refused(job, small_recipe())


MODEL_FOLDERS: dict[str, dict[str, str]] = {
    "missing": {},
    "empty": {"README.md": "hello"},
    "of others": {"config.json": '{"model_type": "clip"}'},
    "of a later version": {"config.json": '{"format": "ldznet-network", "format_version": 99}'},
    "damaged": {"config.json": "{"},
}


@pytest.mark.parametrize("kind", MODEL_FOLDERS)
def test_a_model_folder_that_is_not_ours(
    kind: str, refused: Callable[..., str], small_data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    for name, text in MODEL_FOLDERS[kind].items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    line = refused("segment", small_data / "images/0.png", "the box", "--model", folder)
    assert str(folder) in line
