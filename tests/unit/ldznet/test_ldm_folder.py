"""A frozen LDM's folder is checked before anything is loaded, and told apart by what is in it."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from ldznet.errors import UserError
from ldznet.frozen_ldm import FrozenLDM
from ldznet.ldm_folder import PARTS, check_ldm_folder, ldm_digest, resolve_ldm
from ldznet.miniature_ldm import MiniatureConfig, build_miniature_ldm

TINY = MiniatureConfig(block_out_channels=(8, 16, 16, 16), context_width=16, vae_channels=(8, 8, 8, 8))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_miniature_ldm(tmp_path_factory.mktemp("ldm") / "tiny", config=TINY, phrases=["a red car"])


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy"))


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_named(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    with pytest.raises(UserError, match=f"the part '{part}' is missing"):
        FrozenLDM.from_pretrained(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_pickle_weights_alone_are_refused_with_the_mend(folder: Path, part: str) -> None:
    (weights,) = (folder / part).glob("*.safetensors")
    weights.unlink()
    torch.save({}, folder / part / "pytorch_model.bin")
    with pytest.raises(UserError, match=f"'{part}' has pickle weights only .*convert with") as caught:
        FrozenLDM.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_missing_weights_configuration_or_vocabulary_are_named(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "weights")
    with pytest.raises(UserError, match=r"unet/diffusion_pytorch_model\.safetensors' is missing"):
        check_ldm_folder(folder)
    (folder / "weights").rename(folder / "unet" / "diffusion_pytorch_model.safetensors")
    (folder / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"'tokenizer' lacks tokenizer\.json"):
        check_ldm_folder(folder)
    (folder / "vae" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"'vae/config\.json' is not JSON"):
        check_ldm_folder(folder)


def test_a_missing_shard_of_the_weights_is_named(folder: Path) -> None:
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole.unlink()
    index = {"weight_map": {"conv_in.weight": "part-1.safetensors"}}
    whole.with_name(whole.name + ".index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(UserError, match=r"'unet/part-1\.safetensors' is missing"):
        check_ldm_folder(folder)


def test_what_is_neither_folder_nor_hub_id_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        resolve_ldm(tmp_path / "nowhere")


def test_a_hub_id_that_cannot_be_had_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match="nobody/nothing: no such folder, and the hub could not give it"
    ) as caught:
        resolve_ldm("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_the_digest_follows_content_and_not_the_place(built: Path, folder: Path) -> None:
    assert ldm_digest(built) == ldm_digest(folder)
    config = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    config["_diffusers_version"], config["_name_or_path"] = "9.9", "elsewhere"
    (folder / "unet" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert ldm_digest(built) == ldm_digest(folder)


@pytest.mark.parametrize(
    "name",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
    ],
)
def test_the_digest_changes_with_any_weight_or_vocabulary(built: Path, folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    place = content.rindex(b'"a"') + 1 if name.endswith("json") else -1
    content[place] ^= 1
    (folder / name).write_bytes(content)
    assert ldm_digest(built) != ldm_digest(folder)


def test_the_digest_changes_with_the_noise_schedule(built: Path, folder: Path) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["beta_end"] = 0.02
    path.write_text(json.dumps(config), encoding="utf-8")
    assert ldm_digest(built) != ldm_digest(folder)
