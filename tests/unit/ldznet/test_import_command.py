"""`ldznet import`: what it makes of each kind of checkpoint, and what it says to mistakes."""

import json
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from test_importer import (
    FROZEN,
    UNET,
    authors_state,
    build_tokenizer,
    compvis_text,
    compvis_unet,
    compvis_vae,
    config_file,
    lightning,
    make_frozen_unet,
    make_network,
    make_text_encoder,
    make_vae,
    write_lightning,
)

from jobs.cli import main
from ldznet.frozen_ldm import FrozenLDM
from ldznet.ldm_folder import ldm_digest
from ldznet.prediction_config import PredictionConfig
from ldznet.predictor import Predictor

__all__ = ["lightning"]  # a fixture


@pytest.fixture
def tokenizer(tmp_path: Path) -> tuple[Path, int]:
    tokens = build_tokenizer(tmp_path / "tokenizer", ["a photo of a cat."], vocabulary_size=400)
    return tmp_path / "tokenizer", tokens


def whole_state(tokens: int) -> dict[str, torch.Tensor]:
    """The authors' file with everything in it: network, frozen UNet, first stage, text encoder."""
    return {
        **authors_state(make_network()),
        **compvis_unet(make_frozen_unet(), FROZEN),
        **compvis_vae(make_vae()),
        **compvis_text(make_text_encoder(tokens)),
    }


def test_a_checkpoint_with_everything_in_it_needs_one_command(
    tmp_path: Path, tokenizer: tuple[Path, int], lightning: types.SimpleNamespace
) -> None:
    folder, tokens = tokenizer
    write_lightning(tmp_path / "last.ckpt", whole_state(tokens), lightning)
    out, ldm_out = tmp_path / "model", tmp_path / "ldm"
    arguments = [str(tmp_path / "last.ckpt"), "--out", str(out), "--ldm-out", str(ldm_out)]
    arguments += ["--tokenizer", str(folder), "--unet-config", str(config_file(tmp_path))]
    assert main(["import", *arguments, "--resize", "aspect"]) == 0
    config = PredictionConfig.load(out)
    assert (config.ldm_source, config.ldm_digest) == (str(ldm_out), ldm_digest(ldm_out))
    assert (config.size, config.resize) == (128, "aspect")  # positional embedding for latents of side 16
    predictor = Predictor.from_pretrained(out, device="cpu")
    predictor.set_image(photo_bytes(150, 80))
    assert predictor.predict(["a cat"])[0].mask.shape == (80, 150)


def test_an_imported_model_is_evaluated_on_features_of_its_own_ldm(
    tmp_path: Path, tokenizer: tuple[Path, int], small_data: Path, precompute_here: Callable[..., None]
) -> None:
    folder, tokens = tokenizer
    torch.save({"state_dict": whole_state(tokens)}, tmp_path / "last.ckpt")
    sizes = ["--unet-config", str(config_file(tmp_path)), "--tokenizer", str(folder)]
    places = ["--out", str(tmp_path / "model"), "--ldm-out", str(tmp_path / "ldm")]
    assert main(["import", str(tmp_path / "last.ckpt"), *places, *sizes]) == 0
    recipe = {
        "name": "imported",
        "output": str(tmp_path / "run"),
        "data": {"format": "folder", "root": str(small_data), "limit": 3},
        "ldm": {"source": str(tmp_path / "ldm")},
        "sets": {name: {"split": name, "view": {"size": 64}} for name in ("train", "val")},
        "cache": {"url": str(tmp_path / "cache")},
        "evaluate": {"models": [str(tmp_path / "model")], "sets": ["val"], "bootstrap": 0},
        "tracking": {"enabled": False},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    precompute_here(path)
    assert main(["evaluate", str(path)]) == 0
    (result,) = json.loads((tmp_path / "run" / "evaluation.json").read_text())["results"]
    assert (result["model"], result["kind"], result["scores"]["phrases"]) == ("model", "ldznet", 3)


def test_stable_diffusion_becomes_a_frozen_ldm_and_the_network_takes_it(
    tmp_path: Path, tokenizer: tuple[Path, int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, tokens = tokenizer
    sd = {
        **compvis_unet(make_frozen_unet(), "model.diffusion_model."),
        **compvis_vae(make_vae()),
        **compvis_text(make_text_encoder(tokens)),
    }
    save_file({name: tensor.contiguous().clone() for name, tensor in sd.items()}, tmp_path / "sd.safetensors")
    sizes = ["--unet-config", str(config_file(tmp_path))]
    made = [
        str(tmp_path / "sd.safetensors"),
        "--out",
        str(tmp_path / "sd"),
        "--tokenizer",
        str(folder),
        *sizes,
    ]
    assert main(["import", *made]) == 0
    assert "frozen LDM -> " in capsys.readouterr().out
    assert FrozenLDM.from_pretrained(tmp_path / "sd", components=()).context_width == UNET["context_dim"]

    torch.save(authors_state(make_network("znet")), tmp_path / "znet.pt")
    network = [
        str(tmp_path / "znet.pt"),
        "--out",
        str(tmp_path / "znet"),
        "--ldm",
        str(tmp_path / "sd"),
        *sizes,
    ]
    assert main(["import", *network]) == 0
    assert PredictionConfig.load(tmp_path / "znet").ldm_digest == ldm_digest(tmp_path / "sd")


def test_without_an_ldm_the_model_says_so_and_takes_one_later(
    tmp_path: Path, miniature_ldm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(authors_state(make_network()), tmp_path / "last.safetensors")
    out = tmp_path / "model"
    sizes = ["--unet-config", str(config_file(tmp_path))]
    assert main(["import", str(tmp_path / "last.safetensors"), "--out", str(out), *sizes]) == 0
    assert "--ldm" in capsys.readouterr().out
    (tmp_path / "photo.png").write_bytes(photo_bytes(64, 64))
    assert main(["segment", str(tmp_path / "photo.png"), "a cat", "--model", str(out)]) == 2
    assert_one_line(capsys.readouterr().err, "name it with --ldm")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--ldm", "LDM", "--ldm-out", "new"], "not both"),
        (["--ldm", "nowhere"], "no such folder"),
        (["--ldm", "LDM"], "sizes other than SD v1's: --unet-config"),
        (["--ldm-out", "model"], "name one folder"),
        (["--unet-config", "unet.json", "--ldm-out", "new"], "(sd_features_stage_model."),
        (["--unet-config", "unet.json", "--ldm", "LDM"], "its UNet has block_out_channels"),
        (["--unet-config", "missing.json"], "cannot be read as JSON"),
        ([], "of wrong shape"),
    ],
)
def test_mistakes_are_told_in_one_line_and_leave_nothing(  # noqa: PLR0917 - fixtures
    options: list[str],
    told: str,
    tmp_path: Path,
    miniature_ldm: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    config_file(tmp_path)
    save_file(authors_state(make_network()), tmp_path / "last.safetensors")
    given = [str(miniature_ldm) if option == "LDM" else option for option in options]
    assert main(["import", "last.safetensors", "--out", "model", *given]) == 2
    assert_one_line(capsys.readouterr().err, told)
    assert not Path("model").exists()
    assert not Path("new").exists()


def test_nothing_that_is_there_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    assert main(["import", str(tmp_path / "last.ckpt"), "--out", str(tmp_path)]) == 2
    assert_one_line(capsys.readouterr().err, "is there already")
    assert (tmp_path / "letters.txt").read_text() == "dear"


def test_a_checkpoint_of_something_else_is_refused(
    tmp_path: Path, miniature_ldm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": {"layer.weight": torch.ones(2)}}, tmp_path / "other.pt")
    arguments = ["import", str(tmp_path / "other.pt"), "--out", str(tmp_path / "model")]
    assert main(arguments) == 2
    assert_one_line(capsys.readouterr().err, "neither LD-ZNet's nor Stable Diffusion's")
    assert main([*arguments, "--ldm", str(miniature_ldm)]) == 2
    assert_one_line(capsys.readouterr().err, "are for networks")
    assert main(["import", str(tmp_path / "none.ckpt"), "--out", str(tmp_path / "model")]) == 2
    assert_one_line(capsys.readouterr().err, "does not exist")


def photo_bytes(width: int, height: int) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (180, 60, 20)).save(buffer, format="PNG")
    return buffer.getvalue()


def assert_one_line(text: str, told: str) -> None:
    lines = [line for line in text.splitlines() if line.startswith("ldznet: ")]
    assert len(lines) == 1
    assert told in lines[0]
    assert "Traceback" not in text
