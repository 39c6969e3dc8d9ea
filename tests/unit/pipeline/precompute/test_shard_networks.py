"""The thread that feeds the device."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ldznet.errors import UserError
from ldznet.frozen_ldm import FrozenLDM
from pipeline.precompute.networks import Networks
from pipeline.precompute.passes import (
    FeatureBatch,
    ViewBatch,
    block_features,
    encode_prompts,
    encode_views,
    to_device,
)


@pytest.fixture(scope="module")
def ldm(miniature_ldm: Path) -> FrozenLDM:
    return FrozenLDM.from_pretrained(miniature_ldm, last_block=6)


@pytest.fixture
def networks(ldm: FrozenLDM) -> Iterator[Networks]:
    before = set(threading.enumerate())
    with Networks(ldm, threads=1) as networks:
        yield networks
    assert set(threading.enumerate()) <= before  # others' threads may end meanwhile


def test_passes_run_in_turn_on_one_thread_with_the_threads_asked_for(networks: Networks) -> None:
    seen = []

    def note(_: FrozenLDM) -> dict[str, torch.Tensor]:
        assert not torch.is_grad_enabled()
        seen.append((threading.current_thread().name, torch.get_num_threads()))
        return {"number": torch.tensor(len(seen))}

    passes = networks.passes()
    pending = [passes.submit(note) for _ in range(5)]
    assert [int(one.result()["number"]) for one in pending] == [1, 2, 3, 4, 5]
    assert set(seen) == {("networks", 1)}
    assert networks.busy_s > 0
    assert not networks.on_gpu


def test_what_a_pass_raises_reaches_who_handed_it_in_and_nobody_else(networks: Networks) -> None:
    def bad(_: FrozenLDM) -> dict[str, torch.Tensor]:
        raise UserError("not this way")

    passes, other = networks.passes(), networks.passes()
    refused, fine = passes.submit(bad), other.submit(lambda _: {"one": torch.ones(1)})
    with pytest.raises(UserError, match="not this way"):
        refused.result()
    assert fine.result()["one"] == 1


def test_padding_is_neither_given_back_nor_felt(ldm: FrozenLDM) -> None:
    generator = torch.Generator().manual_seed(0)
    latents, context = (
        torch.randn(3, 4, 8, 8, generator=generator),
        torch.randn(3, 77, 128, generator=generator),
    )
    noise = list(torch.randn(3, 4, 8, 8, generator=generator))
    padded = FeatureBatch.of(latents, context, timesteps=[1, 2, 3], noise=noise, size=5)
    assert padded.latents.shape == (5, 4, 8, 8)
    assert padded.timesteps.tolist() == [1, 2, 3, 3, 3]
    features = block_features(ldm, padded, blocks=(6,))
    assert features[6].shape[0] == 3
    order = [2, 0, 1]
    other = FeatureBatch.of(
        latents[order], context[order], timesteps=[3, 1, 2], noise=[noise[i] for i in order], size=5
    )
    assert torch.equal(block_features(ldm, other, blocks=(6,))[6], features[6][order])
    assert encode_prompts(ldm, ["a", "b"], size=4).shape == (2, 77, 128)
    pixels = torch.zeros(64, 64, 3, dtype=torch.uint8).numpy()
    views = ViewBatch.of([(("image", "view"), pixels)], size=3, seed=0, ldm=ldm)
    assert views.images.shape == (3, 3, 64, 64)
    assert encode_views(ldm, views).shape == (1, 4, 8, 8)


def test_on_the_cpu_nothing_is_copied(ldm: FrozenLDM) -> None:
    tensor = torch.zeros(3)
    assert to_device(tensor, ldm.device) is tensor
