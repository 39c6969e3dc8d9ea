"""`ldznet segment`: files of each phrase, and one line for each mistake."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.cli import main
from ldznet.ldm_folder import ldm_digest
from ldznet.modeling import NetworkConfig, build_network, unet_config_of
from ldznet.prediction_config import PredictionConfig


@pytest.fixture(scope="module")
def model(miniature_ldm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "ldznet"
    torch.manual_seed(0)
    unet = unet_config_of(miniature_ldm)
    build_network(NetworkConfig(unet=unet, positional_latent_side=8)).save_pretrained(folder)
    PredictionConfig(ldm_source=str(miniature_ldm), ldm_digest=ldm_digest(miniature_ldm), size=64).save(
        folder
    )
    return folder


def test_each_phrase_gets_a_mask_an_overlay_and_on_request_its_probabilities(
    model: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "masks"
    phrases = ["the dog", "The dog!", "two dogs"]
    arguments = [str(photo), *phrases, "--model", str(model), "--out", str(out)]
    options = [
        "--resize",
        "aspect",
        "--timesteps",
        "300,500",
        "--seeds",
        "0,1",
        "--probability",
        "--threshold",
        "0.4",
    ]
    assert main(["segment", *arguments, *options]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    for name in ("photo-the-dog", "photo-the-dog-2", "photo-two-dogs"):
        with Image.open(out / f"{name}-mask.png") as image:
            mask = np.asarray(image)
        probability = np.load(out / f"{name}.npy", allow_pickle=False)
        assert (probability.dtype, probability.shape) == (np.float32, (50, 70))
        np.testing.assert_array_equal(mask, probability > 0.4)
        with Image.open(out / f"{name}-overlay.png") as image:
            assert image.size == (70, 50)


def test_options_change_the_prediction(model: Path, photo: Path, tmp_path: Path) -> None:
    def probability(*options: str) -> np.ndarray:
        arguments = [str(photo), "the dog", "--model", str(model), "--out", str(tmp_path), "--probability"]
        assert main(["segment", *arguments, *options]) == 0
        return np.load(tmp_path / "photo-the-dog.npy", allow_pickle=False)

    plain = probability()
    np.testing.assert_array_equal(plain, probability("--timesteps", "400", "--seeds", "0"))
    assert not np.array_equal(plain, probability("--timesteps", "300,400"))
    assert not np.array_equal(plain, probability("--seeds", "5"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image": "nowhere.png"}, "nowhere.png cannot be read: No such file"),
        ({"image": "."}, "cannot be read: Is a directory"),
        ({"image": "text.jpg"}, "text.jpg: not an image file"),
        ({"phrase": " "}, "an empty phrase names nothing"),
        ({"model": "nowhere"}, "there is no model folder nowhere"),
        ({"model": "."}, "is not a model folder of this project"),
        ({"model": "models:/none@best"}, "Give --tracking-uri"),
        ({"ldm": "."}, "the part 'unet' is missing"),
        ({"ldm": "other"}, "is another LDM than the one"),
        ({"threshold": "1.5"}, "--threshold 1.5 lies outside"),
        ({"timesteps": "300,1000"}, "timestep 1000 is out of range"),
        ({"out": "text.jpg"}, "--out text.jpg cannot be written to"),
        ({"out": "/proc"}, "--out /proc cannot be written to"),
    ],
)
def test_mistakes_are_told_in_one_line(
    changes: dict[str, str],
    told: str,
    *,
    model: Path,
    photo: Path,
    miniature_ldm: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.jpg").write_text("no photo")
    if changes.get("ldm") == "other":
        from shutil import copytree

        from safetensors.torch import load_file, save_file

        weights = copytree(miniature_ldm, tmp_path / "other") / "vae" / "diffusion_pytorch_model.safetensors"
        save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
    given = {"image": str(photo), "phrase": "the dog", "model": str(model)} | changes
    arguments = [given.pop("image"), given.pop("phrase")]
    for name, value in given.items():
        arguments += [f"--{name}", value]
    assert main(["segment", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("ldznet: ")]) == 1
    assert told in lines[-1]
    assert not list(tmp_path.glob("*-mask.png"))


@pytest.mark.parametrize("options", [["--timesteps", "a,b"], ["--seeds", "-1"], ["--resize", "crop"]])
def test_impossible_options_end_with_exit_code_2(options: list[str], model: Path, photo: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["segment", str(photo), "the dog", "--model", str(model), *options])
    assert stopped.value.code == 2
