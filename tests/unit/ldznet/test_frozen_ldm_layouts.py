"""The frozen LDM in another memory layout, and compiled: close values, the same everything else."""

import shutil
from pathlib import Path

import pytest
import torch

from ldznet.frozen_ldm import FrozenLDM
from ldznet.miniature_ldm import MiniatureConfig, build_miniature_ldm

TINY = MiniatureConfig(block_out_channels=(8, 16, 16, 16), context_width=16, vae_channels=(8, 8, 8, 8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_miniature_ldm(tmp_path_factory.mktemp("ldm") / "tiny", config=TINY, phrases=["red car"])


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


IMAGES = randn(2, 3, 64, 64).tanh()
INPUTS = randn(2, 4, 8, 8), torch.tensor([3, 500]), randn(2, 77, 16, seed=1)


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_channels_last_changes_the_layout_and_hardly_the_values(folder: Path) -> None:
    plain = FrozenLDM.from_pretrained(folder, last_block=8)
    other = FrozenLDM.from_pretrained(folder, last_block=8, channels_last=True)
    kernel = other.unet.conv_in.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert not plain.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    close(other.encode_images(IMAGES), plain.encode_images(IMAGES))
    features, expected = (
        other.block_features(*INPUTS, blocks=(6, 8)),
        plain.block_features(*INPUTS, blocks=(6, 8)),
    )
    for block in (6, 8):
        assert features[block].is_contiguous(memory_format=torch.channels_last)
        close(features[block], expected[block])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on the CPU needs g++")
def test_compiled_networks_give_close_values(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Up to block 1 only: on a CPU the graph of blocks 1 to 10 takes over a minute to compile.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    plain = FrozenLDM.from_pretrained(folder, last_block=1)
    compiled = FrozenLDM.from_pretrained(folder, last_block=1, compiled=True)
    features = compiled.block_features(*INPUTS, blocks=(1,))[1]
    close(features, plain.block_features(*INPUTS, blocks=(1,))[1])
    assert torch.equal(features, compiled.block_features(*INPUTS, blocks=(1,))[1])
    latents = compiled.encode_images(IMAGES)
    close(latents, plain.encode_images(IMAGES))
