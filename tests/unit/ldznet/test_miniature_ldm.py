"""The miniature LDM: Stable Diffusion's topology, repeatable bytes, sane numbers."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from ldznet.frozen_ldm import FrozenLDM
from ldznet.miniature_ldm import MiniatureConfig, build_miniature_ldm
from ldznet.miniature_tokenizer import build_tokenizer
from ldznet.prompts import TEMPLATES

PHRASES = ["red apple on the left", "green car", "dog", "the red car", "green dog on the right"]
TINY = MiniatureConfig(block_out_channels=(8, 16, 16, 16), context_width=16, vae_channels=(8, 8, 8, 8))


@pytest.fixture(scope="module")
def ldm(tmp_path_factory: pytest.TempPathFactory) -> FrozenLDM:
    folder = tmp_path_factory.mktemp("ldm") / "miniature"
    return FrozenLDM.from_pretrained(build_miniature_ldm(folder, config=MiniatureConfig(), phrases=PHRASES))


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path.read_bytes()


def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    build_miniature_ldm(tmp_path / "here", config=TINY, phrases=PHRASES)
    code = (
        "import sys, torch; torch.set_num_threads(2)\n"
        "from ldznet.miniature_ldm import MiniatureConfig, build_miniature_ldm\n"
        "config = MiniatureConfig.model_validate_json(sys.argv[2])\n"
        "build_miniature_ldm(sys.argv[1], config=config, phrases=reversed(sys.argv[3:]))"
    )
    arguments = [str(tmp_path / "there"), TINY.model_dump_json(), *PHRASES]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
    assert dict(files(tmp_path / "here")) == dict(files(tmp_path / "there"))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_another_seed_writes_other_weights_and_replaces_the_folder(tmp_path: Path) -> None:
    folder = build_miniature_ldm(tmp_path / "ldm", config=TINY, phrases=PHRASES)
    (folder / "stray").touch()
    before = dict(files(folder))
    after = dict(
        files(build_miniature_ldm(folder, config=TINY.model_copy(update={"seed": 1}), phrases=PHRASES))
    )
    assert "stray" not in after
    for name, content in before.items():
        if name.endswith(".safetensors"):
            assert content != after[name], name


def test_it_has_stable_diffusions_sixteen_blocks_and_schedule(ldm: FrozenLDM) -> None:
    assert len(ldm.blocks) == 16
    assert [ldm.blocks[number].stride for number in (1, 3, 5, 7, 8, 11, 14)] == [1, 2, 4, 8, 4, 2, 1]
    assert (ldm.latent_channels, ldm.latent_stride, ldm.train_timesteps) == (4, 8, 1000)
    assert ldm.vae_config["scaling_factor"] == 0.18215


def smooth_images() -> torch.Tensor:
    """Photo-like: large patches of colour with fine noise."""
    random = np.random.default_rng(7)
    coarse = torch.from_numpy(random.uniform(-1, 1, (4, 3, 4, 4))).float()
    fine = torch.from_numpy(random.normal(0, 0.05, (4, 3, 128, 128))).float()
    return (torch.nn.functional.interpolate(coarse, size=128, mode="bicubic") + fine).clamp(-1, 1)


def test_latents_have_about_unit_deviation_and_keep_colour(ldm: FrozenLDM) -> None:
    images = smooth_images()
    latents = ldm.encode_images(images)
    assert 0.5 < latents.std() < 2
    z = latents.permute(0, 2, 3, 1).reshape(-1, 4)
    colour = torch.nn.functional.avg_pool2d(images, 8).permute(0, 2, 3, 1).reshape(-1, 3)
    design = torch.cat([z, torch.ones(len(z), 1)], dim=1)
    left = colour - design @ torch.linalg.lstsq(design, colour).solution
    assert (1 - left.var(dim=0) / colour.var(dim=0)).mean() > 0.4


def test_features_neither_explode_nor_collapse(ldm: FrozenLDM) -> None:
    z = ldm.encode_images(smooth_images())
    context = ldm.encode_prompts([TEMPLATES[0].format(phrase) for phrase in PHRASES[:4]])
    steps = torch.full((4,), 400)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    noisy = ldm.add_noise(z, noise, steps)
    features = ldm.block_features(noisy, steps, context, range(1, 17))
    other_text = ldm.block_features(noisy, steps, context.roll(1, 0), range(1, 17))
    for number, feature in features.items():
        assert 0.3 < feature.std() < 10, number
        assert feature.std(dim=(2, 3)).mean() > 0.3 * feature.std(), number  # varies over the image
        assert (feature - other_text[number]).std() > 0.02 * feature.std(), number  # and with the phrase
    assert 0.1 < ldm.noise_estimate(noisy, steps, context).std() < 10


def test_the_tokenizer_is_clips_in_miniature(tmp_path: Path) -> None:
    size = build_tokenizer(tmp_path, [*TEMPLATES, *PHRASES * 3], vocabulary_size=700)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    assert 514 < size <= 700
    assert tokenizer.model_max_length == 77
    ids = tokenizer(["A red CAR", "zebra \u00e9\u4e2d!"], padding="max_length", truncation=True).input_ids
    assert [len(row) for row in ids] == [77, 77]
    start, end = size - 2, size - 1
    assert [row[0] for row in ids] == [start, start]
    assert ids[0][4:] == [end] * 73  # three learned words, then CLIP's padding with its end token
    assert end not in ids[1][1 : ids[1].index(end)]
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == "a red car"
    assert tokenizer.decode(ids[1], skip_special_tokens=True) == "zebra \u00e9\u4e2d !"
