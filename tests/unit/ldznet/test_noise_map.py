"""Noise maps: the figure's formula, equal each time, and nothing of a neighbour in a batch."""

from pathlib import Path

import pytest
import torch

from ldznet.errors import UserError
from ldznet.frozen_ldm import FrozenLDM
from ldznet.noise_map import NoiseMaps
from ldznet.noise_map_config import NoiseMapConfig

CONFIG = NoiseMapConfig(timesteps=(300, 500), seeds=(4, 5))


@pytest.fixture(scope="module")
def ldm(miniature_ldm: Path) -> FrozenLDM:
    return FrozenLDM.from_pretrained(miniature_ldm)


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    return torch.randn((3, 4, 8, 8), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def context(ldm: FrozenLDM) -> torch.Tensor:
    return ldm.encode_prompts(["the red circle", "a green dog", "sky"])


def test_it_is_the_mean_norm_of_the_difference(
    ldm: FrozenLDM, latents: torch.Tensor, context: torch.Tensor
) -> None:
    norms = NoiseMaps(ldm=ldm, config=CONFIG).norms(latents[:1], context[:1])
    expected = torch.zeros(8, 8)
    for timestep in CONFIG.timesteps:
        for seed in CONFIG.seeds:
            noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(seed))
            steps = torch.tensor([timestep])
            noisy = ldm.add_noise(latents[:1], noise, steps)
            difference = ldm.noise_estimate(noisy, steps, context[:1]) - ldm.noise_estimate(
                noisy, steps, ldm.encode_prompts([""])
            )
            expected += difference[0].square().sum(0).sqrt() / 4
    torch.testing.assert_close(norms[0, 0], expected)


def test_a_neighbour_in_the_batch_changes_nothing(
    ldm: FrozenLDM, latents: torch.Tensor, context: torch.Tensor
) -> None:
    maps = NoiseMaps(ldm=ldm, config=CONFIG)
    together = maps.norms(latents, context)
    alone = torch.cat([maps.norms(latents[row : row + 1], context[row : row + 1]) for row in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


def test_maps_reach_from_0_to_1(ldm: FrozenLDM, latents: torch.Tensor, context: torch.Tensor) -> None:
    maps = NoiseMaps(ldm=ldm, config=CONFIG).maps(latents, context)
    assert maps.shape == (3, 1, 8, 8)
    assert maps.amin((1, 2, 3)).tolist() == [0, 0, 0]
    assert maps.amax((1, 2, 3)).tolist() == [1, 1, 1]


def test_nothing_asked_is_nowhere(ldm: FrozenLDM, latents: torch.Tensor) -> None:
    maps = NoiseMaps(ldm=ldm, config=CONFIG).maps(latents[:1], ldm.encode_prompts([""]))
    assert maps.abs().max() == 0


def test_a_timestep_past_the_schedule_is_refused(ldm: FrozenLDM) -> None:
    with pytest.raises(UserError, match="1000 is out of range"):
        NoiseMaps(ldm=ldm, config=NoiseMapConfig(timesteps=(1000,)))
