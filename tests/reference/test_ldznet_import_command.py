"""The authors' checkpoint through the command line: import it, and it gives the authors' own logits and masks."""

import collections
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_ldznet_reference import (
    TOLERANCE,
    UNET,
    make_tensor,
    our_names_and_shapes,
    read_copy,
)

from jobs.cli import main
from ldznet import FrozenLDM, LDZNet
from ldznet.importer import frozen_unet_from_state_dict
from ldznet.miniature_ldm import MiniatureConfig, build_miniature_ldm


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return {name: make_tensor(name, shape) for name, shape in our_names_and_shapes().items()}


@pytest.fixture(scope="module")
def ldm(state: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference's frozen LDM in the diffusers layout; its first stage and text encoder are the miniature's."""
    folder = build_miniature_ldm(
        tmp_path_factory.mktemp("reference") / "ldm",
        config=MiniatureConfig(block_out_channels=(8, 8, 8, 8)),
        phrases=["a cat"],
    )
    frozen_unet_from_state_dict(state, unet_config=UNET).save_pretrained(folder / "unet")
    return folder


@pytest.fixture(scope="module")
def checkpoint(state: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Lightning writes it: raw weights that differ from the EMA's, counters, and an object of a class of its own."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        sys.modules[part] = types.ModuleType(part)
    sys.modules[name] = module
    network = {key: value for key, value in state.items() if key.startswith("model.diffusion_model.")}
    ema = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): value for key, value in network.items()
    }
    raw = {key: value + 1 for key, value in network.items()}
    path = tmp_path_factory.mktemp("checkpoint") / "epoch=000014.ckpt"
    content = {
        "epoch": 14,
        "callbacks": {module.ModelCheckpoint: {"best_model_score": torch.tensor(0.1)}},
        "hyper_parameters": collections.OrderedDict(rate=5e-7),
        "state_dict": {**state, **raw, **ema, "model_ema.num_updates": torch.tensor(146_000)},
    }
    try:
        torch.save(content, path)
    finally:
        for part in [one for one in sys.modules if one.startswith("pytorch_lightning")]:
            del sys.modules[part]
    return path


@pytest.fixture(scope="module")
def unet_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import json

    path = tmp_path_factory.mktemp("config") / "unet.json"
    path.write_text(json.dumps({"unet": UNET}))
    return path


@torch.no_grad()
def test_one_command_from_the_checkpoint_to_the_authors_logits_and_to_masks(
    checkpoint: Path, ldm: Path, unet_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    arguments = [str(checkpoint), "--out", str(out), "--ldm", str(ldm), "--unet-config", str(unet_config)]
    assert main(["import", *arguments]) == 0
    told = capsys.readouterr().out
    assert "ldznet -> " in told
    assert "EMA weights" in told
    assert f"--model {out}" in told

    reference = read_copy()
    frozen = FrozenLDM.from_pretrained(ldm, components=["unet"], last_block=10)
    noisy = frozen.add_noise(reference["z"], reference["noise"], reference["timesteps"])
    features = frozen.block_features(noisy, reference["timesteps"], reference["context"])
    logits = LDZNet.from_pretrained(out)(reference["z"], reference["context"], features)
    assert reference.deviation("mask_logits", logits) < 10 * TOLERANCE

    photo = tmp_path / "photo.png"
    Image.new("RGB", (90, 70), (200, 30, 30)).save(photo)
    asked = [str(photo), "the cat", "--model", str(out), "--out", str(tmp_path / "masks")]
    assert main(["segment", *asked]) == 0
    with Image.open(tmp_path / "masks" / "photo-the-cat-mask.png") as mask:
        assert (mask.size, mask.mode) == ((90, 70), "1")


def test_another_frozen_ldm_than_the_checkpoints_own_is_refused(
    checkpoint: Path, ldm: Path, unet_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from shutil import copytree

    from safetensors.torch import load_file, save_file

    other = copytree(ldm, tmp_path / "other")
    weights = other / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    name = "mid_block.attentions.0.proj_in.weight"
    save_file({**tensors, name: tensors[name] * 1.5}, weights, metadata={"format": "pt"})
    out = tmp_path / "model"
    arguments = [str(checkpoint), "--out", str(out), "--ldm", str(other), "--unet-config", str(unet_config)]
    assert main(["import", *arguments]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "differs in mid_block.attentions.0.proj_in.weight" in told
    assert not out.exists()

    # The same weights rounded to 16 bits, as hubs keep them, are the same LDM.
    save_file({key: value.half() for key, value in tensors.items()}, weights, metadata={"format": "pt"})
    assert main(["import", *arguments]) == 0
